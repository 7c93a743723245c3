"""The generation of text: the steps that continue prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from molkv_bundle import Floats, Ids, ProviderError
from molkv_runtime.options import Finish, Logprob, Settings, Token
from molkv_runtime.sequences import Sequences, common_prefix
from molkv_runtime.tokenizer import StopStrings, TextStream

_NGRAMS = (4, 3, 2)  # numbers of tokens that prompt lookup searches for, in this order
WORTHWHILE = 16  # a shorter common prefix is not copied, since that saves no time
_LOG = logging.getLogger(__name__)


class Continuation:
    """A prompt, and the tokens that were generated after it."""

    def __init__(
        self, sequence: int, prompt: Ids, room: int, settings: Settings, stream: TextStream | None = None
    ) -> None:
        """Start with a prompt.

        Args:
            sequence: Index of the prompt in its call.
            prompt: Token ids [n].
            room: The largest number of tokens that the context allows to add.
            settings: The options.
            stream: The converter to text; None: the tokens have no text.
        """
        self.sequence = sequence
        self.finish: Finish = None
        self.proposed: list[int] = []
        self._settings = settings
        self._stream, self._stop = stream, StopStrings(settings.stop)
        self._start = self._length = len(prompt)
        self._ids = np.empty(len(prompt) + min(room, settings.max_new_tokens), np.int64)
        self._ids[: len(prompt)] = prompt
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram -> the index after its latest occurrence
        self._indexed = 0

    @property
    def ids(self) -> Ids:
        """The token ids of prompt and generated text, int64 [n]."""
        return self._ids[: self._length]

    @property
    def room(self) -> int:
        """The number of tokens that can still be added."""
        return len(self._ids) - self._length

    def add(self, logits: Floats) -> Token:
        """Choose the next token from the logits [V] of the last position, and append it.

        Raises:
            ProviderError: A logit is NaN or infinite.
        """
        prompt, generated = self._ids[: self._start], self._ids[self._start : self._length]
        try:
            chosen = self._settings.sampling.choose(logits, prompt, generated, self.sequence)
        except ProviderError as error:
            raise ProviderError(f"position {self._length} of sequence {self.sequence}: {error}") from error
        self._ids[self._length] = chosen
        self._length += 1
        self.finish = "stop" if chosen in self._settings.stop_ids else None if self.room else "length"
        text = "" if self._stream is None else self._text(chosen, self._stream)
        token = Token(self.sequence, chosen, self.finish, text)
        if self._settings.logprobs is None:
            return token
        own, *best = _logprobs(logits, chosen, self._settings.logprobs)
        return token._replace(logprob=own.logprob, best=tuple(best))

    def _text(self, chosen: int, stream: TextStream) -> str:
        """Return the text that the chosen token completes. Set `finish` if a stop string is complete."""
        text = self._stop.push("" if self.finish == "stop" else stream.push(chosen))
        if self.finish is not None:
            text += self._stop.push(stream.finish())
        if self._stop.found:
            self.finish = "stop"
        return text + self._stop.finish() if self.finish is not None else text

    def propose(self) -> list[int]:
        """Propose next tokens: those that followed the last tokens where they occurred before.

        The longest of the n-grams that occurred before is used, and its latest occurrence. If this occurrence is less
        than the wanted number of tokens back, the tokens since then are repeated. `proposed` keeps the result.
        """
        most = min(self._settings.lookup, self.room - 1)  # a call adds one token more than it proposes
        self.proposed = []
        if most > 0:
            for end in range(self._indexed, self._length):
                self._seen.update(dict.fromkeys(self._ngrams(end), end))
            self._indexed = self._length
            places = (self._seen.get(ngram) for ngram in self._ngrams(self._length))
            if (start := next((place for place in places if place is not None), None)) is not None:
                self.proposed = np.resize(self.ids[start : start + most], most).tolist()  # repeats them if needed
        return self.proposed

    def _ngrams(self, end: int) -> list[tuple[int, ...]]:
        """Return the n-grams that end before the index `end`, longest first."""
        last = self._ids[max(0, end - _NGRAMS[0]) : end].tolist()
        return [tuple(last[-count:]) for count in _NGRAMS if count <= end]


def _logprobs(logits: Floats, chosen: int, count: int) -> list[Logprob]:
    """Return the log-probability of the chosen token, then of the `count` likeliest tokens; of equals, lower ids."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    ids = np.flatnonzero(x >= np.partition(x, len(x) - count)[len(x) - count]) if count else np.zeros(0, np.int64)
    order = ids[np.argsort(-x[ids], kind="stable")][:count]
    return [Logprob(token, float(x[token])) for token in (chosen, *order.tolist())]


def generate(state: Sequences, texts: Sequence[Continuation]) -> Iterator[Token]:
    """Continue texts until all have ended. Each step adds at least one token to each text.

    Args:
        state: One sequence for each text. A sequence may already hold tokens. The tokens that the text begins with are
            not computed again; the others are removed.
        texts: The texts, in the order of the sequences.

    Raises:
        BundleError: A record cannot be read.
        ProviderError: A logit is NaN or infinite.
    """
    before, reused, rows = time.perf_counter(), 0, list[Floats]()
    for text in texts:
        common = _reuse(state, text.sequence, text.ids)
        rows.append(state.prefill(text.sequence, text.ids[common:]))
        reused += common
    _log_speed("prefill", sum(len(text.ids) for text in texts) - reused, before, f", {reused} tokens reused")
    active, seconds, steps, generated = list(texts), 0.0, 0, 0
    while True:
        for text in active:
            for token in _chosen(text, rows[text.sequence]):
                generated += steps > 0
                yield token
            if text.proposed and text.finish is None:
                state.rewind(text.sequence, len(text.ids) - 1)
        active = [text for text in active if text.finish is None]
        if not active:
            if steps:
                _log_speed("decode", generated, time.perf_counter() - seconds, f", {steps} steps")
            return
        before = time.perf_counter()
        _step(state, active, rows)
        seconds += time.perf_counter() - before  # without the caller's time between two tokens
        steps += 1


def _reuse(state: Sequences, sequence: int, ids: Ids) -> int:
    """Make a sequence hold the beginning of `ids`, as far as this or another sequence has it. Return its length."""
    most = len(ids) - 1  # the last token is computed again in any case, since its logits are needed
    own = common_prefix(state.history(sequence), ids)
    other, common = state.longest_match(ids)
    if common - own < WORTHWHILE:
        state.rewind(sequence, min(own, most))
        return min(own, most)
    state.reset(sequence)
    state.copy(sequence, state, other, min(common, most))
    return min(common, most)


def _chosen(text: Continuation, rows: Floats) -> Iterator[Token]:
    """Choose a token from each row of logits, up to the first token that was not proposed or ends the text."""
    for number, row in enumerate(rows):
        token = text.add(row)
        yield token
        if token.finish is not None or text.proposed[number : number + 1] != [token.id]:
            return


def _step(state: Sequences, active: Sequence[Continuation], rows: list[Floats]) -> None:
    """Run the last token of each text, and its proposed tokens. Write the logits of these positions to `rows`."""
    tokens, plain = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    for text in active:
        place = text.sequence
        if proposed := text.propose():
            # The graph takes several positions of one sequence only, so each sequence has a call of its own.
            rows[place] = state.prefill(place, [text.ids[-1], *proposed], all_logits=True)
        else:
            tokens[place], plain[place] = text.ids[-1], True
    if plain.any():
        logits = state.decode(tokens, plain)
        for place in np.flatnonzero(plain).tolist():
            rows[place] = logits[place : place + 1]


def _log_speed(phase: str, tokens: int, start: float, details: str) -> None:
    seconds = time.perf_counter() - start
    _LOG.info("%s: %d tokens in %.3f s, %.1f tokens/s%s", phase, tokens, seconds, tokens / seconds, details)
