"""The options of text generation, and its results: tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Literal, NamedTuple, TypedDict

from molkv_bundle import RequestError
from molkv_runtime.checks import token_ids, whole_number
from molkv_runtime.sampling import Sampling
from molkv_runtime.tokenizer import StopStrings

Finish = Literal["stop", "length"] | None

_MOST_PROPOSED = 256


class Logprob(NamedTuple):
    """The logarithm of a token's probability. It follows from the logits alone, without temperature and penalties."""

    id: int
    logprob: float


class Token(NamedTuple):
    """One generated token."""

    sequence: int  # index of the prompt that the token continues
    id: int
    finish: Finish  # the reason why the sequence ends here; None: it continues
    text: str = ""  # the text that this token completes; always empty in `Generator.stream` without stop strings
    logprob: float | None = None  # as in `Logprob`, if logprobs were requested
    best: tuple[Logprob, ...] = ()  # the likeliest tokens, as many as were requested


class Options(TypedDict, total=False):
    """The keyword arguments of all methods that generate text."""

    max_new_tokens: int
    """The largest number of tokens to add to each prompt (default 128). A stop or the end of the context is earlier."""

    sampling: Sampling | None
    """The sampling parameters; default: those of the bundle."""

    stop_ids: Collection[int] | None
    """Token ids that end a text; default: the bundle's end-of-text tokens."""

    stop: Sequence[str]
    """Strings that end a text. The text ends before the first of these strings; see `StopStrings`. A special token,
    which is not shown, ends the text if one of the strings is its name."""

    logprobs: int | None
    """Return the log-probability of each token, and of this number of likeliest tokens; default: none."""

    lookup: int
    """Prompt lookup: propose up to this number of tokens, which followed the same tokens earlier in the text, and check
    all of them in one call. The text is the same up to rounding. Default: 0 (off). Profile cpu only."""


class Settings(NamedTuple):
    """The values of `Options`, with defaults."""

    max_new_tokens: int = 128
    sampling: Sampling | None = None
    stop_ids: Collection[int] | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    lookup: int = 0

    def checked(self, defaults: Sampling, end_ids: Collection[int], vocab_size: int) -> Settings:
        """Check the values, and return them with the bundle's defaults.

        Raises:
            RequestError: A value is impossible.
        """
        whole_number("max_new_tokens", self.max_new_tokens, 1)
        whole_number("lookup", self.lookup, 0, most=_MOST_PROPOSED)
        if self.logprobs is not None:
            whole_number("logprobs", self.logprobs, 0, most=vocab_size)
        if not isinstance(self.sampling, Sampling | None):
            raise RequestError(f"sampling: found a {type(self.sampling).__name__}, expected a Sampling")
        if self.stop_ids is not None:
            given = list(self.stop_ids) if isinstance(self.stop_ids, Set) else self.stop_ids
            end_ids = token_ids("stop_ids", given).tolist()
        stop = StopStrings(self.stop).strings  # each text reads them again, which an iterator does not allow
        return self._replace(sampling=self.sampling or defaults, stop_ids=frozenset(end_ids), stop=stop)
