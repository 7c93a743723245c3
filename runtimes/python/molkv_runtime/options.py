"""The options of text generation, and its results: tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from molkv_bundle import RequestError
from molkv_runtime.checks import inside_vocabulary, token_ids, whole_number
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
    """The values of all `Options`, checked."""

    max_new_tokens: int = 128
    sampling: Sampling = Sampling()
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    lookup: int = 0

    def updated(self, options: Options, vocab_size: int) -> Settings:
        """Check options, and return these settings with the values of the options.

        Raises:
            RequestError: A value is impossible.
            TypeError: There is no such option.
        """
        if unknown := [name for name in options if name not in self._fields]:
            raise TypeError(f"{unknown[0]!r} is not an option, expected {', '.join(self._fields)}")
        sampling, stop_ids = options.get("sampling"), options.get("stop_ids")
        if not isinstance(sampling, Sampling | None):
            raise RequestError(f"sampling: found a {type(sampling).__name__}, expected a Sampling")
        if stop_ids is not None:
            given = list(stop_ids) if isinstance(stop_ids, Set) else stop_ids
            stop_ids = frozenset(token_ids("stop_ids", given).tolist())
        settings = Settings(
            max_new_tokens=whole_number("max_new_tokens", options.get("max_new_tokens", self.max_new_tokens), 1),
            sampling=sampling or self.sampling,
            stop_ids=self.stop_ids if stop_ids is None else stop_ids,
            stop=StopStrings(options.get("stop", self.stop)).strings,
            logprobs=options.get("logprobs", self.logprobs),
            lookup=whole_number("lookup", options.get("lookup", self.lookup), 0, most=_MOST_PROPOSED),
        )
        if settings.logprobs is not None:
            whole_number("logprobs", settings.logprobs, 0, most=vocab_size)
        biases = np.array(list(settings.sampling.logit_bias), np.int64)
        inside_vocabulary("logit_bias", biases, vocab_size)
        return settings
