"""Sequences that are rewound, reset, forked, copied and loaded, compared with sequences that never were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from molkv_bundle import Floats, Ids, read_golden
from molkv_export.families import open_checkpoint
from molkv_export.source.model import SourceModel
from molkv_runtime import Generator, Sequences
from tests.molkv_runtime.living import BATCH, BUNDLES, append, assert_same

LONGEST, VOCAB = 24, 97
WINDOW = 5  # of the configuration "molkv"


class Oracle(NamedTuple):
    """A computation of the logits [n, V] of a whole text, and the largest allowed difference from it."""

    logits: Callable[[Ids], Floats]
    limit: float


class Call(NamedTuple):
    """A call that appended `ids` to a sequence, and its logits: of every id, or of the last id only.

    The first `kept` ids are still part of the sequence, and `logits` has no rows of the others.
    """

    method: str  # "prefill", "prefill of all logits" or "decode"
    ids: list[int]
    kept: int
    logits: Floats

    def shortened(self, kept: int) -> Call:
        rows = self.logits[:kept] if len(self.logits) == len(self.ids) else self.logits[:0]
        return self if kept == self.kept else self._replace(kept=kept, logits=rows)


class Text:
    """The calls that made a sequence what it is. The calls that a rewind removed are not among them."""

    def __init__(self, calls: list[Call] | None = None) -> None:
        self.calls = calls or []

    @property
    def ids(self) -> list[int]:
        return [token for call in self.calls for token in call.ids[: call.kept]]

    @property
    def starts(self) -> list[int]:
        """The length of the sequence before each call, and after the last one."""
        return np.cumsum([0, *(call.kept for call in self.calls)]).tolist()

    def shortened(self, length: int) -> Text:
        return Text(
            [
                call.shortened(min(call.kept, length - start))
                for start, call in zip(self.starts, self.calls, strict=False)
                if start < length
            ]
        )


def _replayed(state: Sequences, sequence: int, text: Text) -> Iterator[Floats]:
    """Repeat the calls of a text in a new object, in which all other sequences are empty. Yield the logits.

    A rewind into a call is repeated, since the graph computed the call's positions together. Other rewinds are not.
    """
    for start, call in zip(text.starts, text.calls, strict=False):
        logits = append(state, sequence, call.method, call.ids)
        if call.kept < len(call.ids):
            state.rewind(sequence, start + call.kept)
            logits = logits[: len(call.logits)]
        yield logits


class Scripts(RuleBasedStateMachine):
    """Random operations on two objects of three sequences each."""

    def __init__(self, generator: Generator, oracles: list[Oracle]) -> None:
        super().__init__()
        self.generator, self.oracles = generator, oracles
        self.chunk: int | None = None
        self.objects: list[Sequences] = []
        self.texts = [[Text() for _ in range(BATCH)] for _ in range(2)]

    _OBJECTS = st.integers(0, 1)
    _SEQUENCES = st.integers(0, BATCH - 1)
    _METHODS = st.sampled_from(["prefill", "prefill of all logits"])
    # Hypothesis draws mostly short lists, but all numbers equally often. So it draws lengths, and seeds of token ids.
    _LENGTHS = st.integers(1, 14)
    _SEEDS = st.integers(0, 2**16)
    _USED = st.integers(0, 2 * BATCH - 1)  # chooses one of the sequences in use

    @initialize(chunk=st.sampled_from([None, 4, 10]), seed=_SEEDS)
    def make(self, chunk: int | None, seed: int) -> None:
        self.chunk = chunk
        self.objects = [self._new() for _ in range(2)]
        for number in range(2):
            self.prefill(number, 1, "prefill", 8, seed + number)

    def _new(self) -> Sequences:
        return self.generator.sequences(BATCH, LONGEST, self.chunk)

    def _used(self) -> list[tuple[int, int]]:
        return [(number, at) for number, texts in enumerate(self.texts) for at, text in enumerate(texts) if text.ids]

    def _free(self, number: int) -> list[int]:
        return [sequence for sequence, text in enumerate(self.texts[number]) if not text.ids]

    @rule(number=_OBJECTS, sequence=_SEQUENCES, method=_METHODS, length=_LENGTHS, seed=_SEEDS)
    def prefill(self, number: int, sequence: int, method: str, length: int, seed: int) -> None:
        """Continue a sequence, or start one while others are in use."""
        text = self.texts[number][sequence]
        if length := min(length, LONGEST - len(text.ids)):
            ids = np.random.default_rng(seed).integers(0, VOCAB, length).tolist()
            logits = append(self.objects[number], sequence, method, ids)
            text.calls.append(Call(method, ids, length, logits))

    @rule(number=_OBJECTS, waiting=st.sets(_SEQUENCES, max_size=BATCH), steps=_LENGTHS, seed=_SEEDS)
    def decode(self, number: int, waiting: set[int], steps: int, seed: int) -> None:
        """Continue the sequences that are neither waiting nor full."""
        for tokens in np.random.default_rng(seed).integers(0, VOCAB, (steps, BATCH)).tolist():
            texts = self.texts[number]
            going = [at not in waiting and len(text.ids) < LONGEST for at, text in enumerate(texts)]
            logits = self.objects[number].decode(tokens, np.array(going)).copy()
            for sequence in np.flatnonzero(going):
                texts[sequence].calls.append(Call("decode", [tokens[sequence]], 1, logits[[sequence]]))

    @precondition(lambda self: self._used())
    @rule(used=_USED, back=st.integers(1, 4))
    def rewind_before_a_call(self, used: int, back: int) -> None:
        number, sequence = self._used()[used % len(self._used())]
        starts = self.texts[number][sequence].starts
        self._rewind(number, sequence, starts[-1 - min(back, len(starts) - 1)])

    @precondition(lambda self: self._used())
    @rule(used=_USED, back=st.integers(0, 2 * WINDOW))
    def rewind(self, used: int, back: int) -> None:
        number, sequence = self._used()[used % len(self._used())]
        self._rewind(number, sequence, max(0, len(self.texts[number][sequence].ids) - back))

    def _rewind(self, number: int, sequence: int, length: int) -> None:
        self.objects[number].rewind(sequence, length)
        self.texts[number][sequence] = self.texts[number][sequence].shortened(length)

    @precondition(lambda self: not (self._free(0) and self._free(1)))
    @rule(sequence=_SEQUENCES)
    def reset(self, sequence: int) -> None:
        """Free a sequence in an object in which all are in use."""
        number = 1 if self._free(0) else 0
        self.objects[number].reset(sequence)
        self.texts[number][sequence] = Text()

    @precondition(lambda self: self._free(0))
    @rule(sequence=_SEQUENCES)
    def fork(self, sequence: int) -> None:
        expected = self._free(0)[0]
        assert self.objects[0].fork(sequence) == expected
        self.texts[0][expected] = Text([*self.texts[0][sequence].calls])

    @precondition(lambda self: self._used() and self._free(1))
    @rule(used=_USED, less=st.integers(0, WINDOW))
    def copy(self, used: int, less: int) -> None:
        """Copy a sequence, or its first tokens, to another object or to the same one."""
        number, source = self._used()[used % len(self._used())]
        text, target = self.texts[number][source], self._free(1)[-1]
        length = max(0, len(text.ids) - less)
        self.objects[1].copy(target, self.objects[number], source, length)
        self.texts[1][target] = text.shortened(length)

    @invariant()
    def the_history_is_the_token_ids(self) -> None:
        for state, texts in zip(self.objects, self.texts, strict=False):
            for sequence, text in enumerate(texts):
                assert state.history(sequence).tolist() == text.ids
            assert state.lengths.tolist() == [len(text.ids) for text in texts]

    def teardown(self) -> None:
        """Continue all sequences by a decode step and a prompt, and compare them with those that never went back."""
        for number, state in enumerate(self.objects):
            for sequence, text in enumerate(self.texts[number]):
                if len(text.ids) == LONGEST:
                    fresh = self._new()
                    list(_replayed(fresh, sequence, text))
                    assert_same(state.caches(sequence), fresh.caches(sequence))
                    self._rewind(number, sequence, LONGEST - 8)
            self.decode(number, set(), 1, 0)
            for sequence in range(BATCH):
                self.prefill(number, sequence, "prefill of all logits", 7, 0)
            for sequence, text in enumerate(self.texts[number]):
                self._check(state, sequence, text)

    def _check(self, state: Sequences, sequence: int, text: Text) -> None:
        fresh = self._new()
        for call, logits in zip(text.calls, _replayed(fresh, sequence, text), strict=True):
            assert np.array_equal(call.logits, logits), f"{call.method} of {call.ids}"
        assert_same(state.caches(sequence), fresh.caches(sequence))
        for oracle in self.oracles:
            expected = oracle.logits(np.array(text.ids))
            for start, call in zip(text.starts, text.calls, strict=False):
                first = start if len(call.logits) == call.kept else start + call.kept - 1
                difference = expected[first : first + len(call.logits)] - call.logits
                assert np.abs(difference).max(initial=0) <= oracle.limit, f"{call.method} of {call.ids} at {start}"


def _oracles(generator: Generator, checkpoint: Path, exact: bool) -> list[Oracle]:
    """Return a single prompt in a new object and, for exact bundles, the source model."""
    limit = read_golden(generator.bundle).limits.max_abs

    def whole(ids: Ids) -> Floats:
        return generator.sequences().prefill(0, ids, all_logits=True)

    if not exact:
        return [Oracle(whole, limit)]
    model = SourceModel(open_checkpoint(checkpoint), generator.bundle)
    return [Oracle(whole, limit), Oracle(partial(model.logits, store=generator.store), limit)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "examples",
    [pytest.param(15, marks=pytest.mark.excerpt), pytest.param(35, marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("name", BUNDLES)
def test_any_script_leaves_each_sequence_as_if_it_had_never_gone_back(
    name: str, examples: int, opened: Callable[[str], Generator], checkpoints: Callable[[str], Path]
) -> None:
    generator = opened(name)
    oracles = _oracles(generator, checkpoints(BUNDLES[name][0]), exact=name in {"molkv", "mole"})
    run_state_machine_as_test(
        lambda: Scripts(generator, oracles),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=examples < 100,  # the same scripts in each run of `make test`
            database=None,
            phases=[Phase.generate],  # to make a script shorter takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
