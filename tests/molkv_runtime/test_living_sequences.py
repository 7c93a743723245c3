"""Sequences that are rewound, reset, forked, copied and loaded, compared with sequences that never were."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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

from molkv_bundle import ArgumentError, Arrays, BundleError, Floats, Ids, RequestError, read_golden
from molkv_export import GraphOptions
from molkv_export.families import open_checkpoint
from molkv_export.source.model import SourceModel
from molkv_runtime import BoundCall, ExpertStore, Generator, Sequences

BATCH, LONGEST, VOCAB = 3, 24, 97
WINDOW = 5  # of the configuration "molkv"

# Names of configurations, dtypes of the store, and options of `export`.
BUNDLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "molkv": ("molkv", "float32", {}),
    "int8 KV cache": ("molkv-some-layers", "float32", {"graph": GraphOptions(kv_dtype="int8")}),
    "int8 store and window": ("molkv", "int8", {"graph": GraphOptions(window_dtype="int8")}),
    "float16 store, int8 window": ("molkv", "float16", {"graph": GraphOptions(window_dtype="int8")}),
    "one slot": ("molkv-one-slot", "float32", {}),
    "wide window": ("molkv-wide-window", "float32", {}),
    "mole": ("mole", "float16", {}),
    "dense": ("dense", "float32", {}),
    "coreml float16": (
        "molkv",
        "float16",
        {"profiles": ["coreml"], "graph": GraphOptions(chunk_lengths=(1, 4, 7), dense_dtype="float16")},
    ),
    "nnapi": ("mole", "float32", {"profiles": ["nnapi"]}),
}


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


def _append(state: Sequences, sequence: int, method: str, ids: list[int]) -> Floats:
    """Repeat a call while the other sequences wait."""
    if method != "decode":
        return state.prefill(sequence, ids, all_logits=method == "prefill of all logits")
    active = np.arange(len(state.lengths)) == sequence
    return state.decode(np.where(active, ids[0], 0), active)[[sequence]]


def _replayed(state: Sequences, sequence: int, text: Text) -> Iterator[Floats]:
    """Repeat the calls of a text in a new object, in which all other sequences are empty. Yield the logits.

    A rewind into a call is repeated, since the graph computed the call's positions together. Other rewinds are not.
    """
    for start, call in zip(text.starts, text.calls, strict=False):
        logits = _append(state, sequence, call.method, call.ids)
        if call.kept < len(call.ids):
            state.rewind(sequence, start + call.kept)
            logits = logits[: len(call.logits)]
        yield logits


def _assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name


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
            logits = _append(self.objects[number], sequence, method, ids)
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
                    _assert_same(state.caches(sequence), fresh.caches(sequence))
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
        _assert_same(state.caches(sequence), fresh.caches(sequence))
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


@pytest.fixture
def opened(bundles: Callable[..., Path]) -> Callable[[str], Generator]:
    """Return a function that opens one of `BUNDLES`."""

    def generator(name: str) -> Generator:
        config, dtype, options = BUNDLES[name]
        return Generator(bundles(config, dtype, **options))

    return generator


@pytest.mark.parametrize("examples", [25, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.exhaustive])])
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


IDS = np.random.default_rng(7).permutation(VOCAB)[:48]  # each id once, so that ids tell positions


@pytest.mark.parametrize("name", ["molkv", "int8 KV cache", "mole", "coreml float16"])
@pytest.mark.parametrize("last", ["prefill", "decode"])
def test_a_full_sequence_waits_unchanged_and_continues_in_a_longer_object(
    name: str, last: str, opened: Callable[[str], Generator]
) -> None:
    generator = opened(name)
    state = generator.sequences(BATCH, LONGEST)
    longer, fresh = (generator.sequences(BATCH, 48) for _ in range(2))
    for each in (state, fresh):
        each.prefill(1, IDS[: LONGEST - 1])
        _append(each, 1, last, IDS[LONGEST - 1 : LONGEST].tolist())
    state.prefill(0, IDS[:9])
    full = {name: array.copy() for name, array in state.caches(1).items()}
    for token in IDS[9:20]:
        state.decode([token, 3, token], np.array([True, False, True]))
        _assert_same(state.caches(1), full)
    longer.copy(1, state, 1, LONGEST)
    _assert_same(longer.caches(1), full)
    for token in IDS[LONGEST:35]:
        assert np.array_equal(_append(longer, 1, "decode", [token]), _append(fresh, 1, "decode", [token]))
    assert np.array_equal(longer.history(1), IDS[:35])


def test_a_full_sequence_is_unchanged_after_a_graph_that_fails(
    opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = opened("molkv").sequences(2, LONGEST)
    state.prefill(0, IDS[:9])
    state.prefill(1, IDS[:LONGEST])
    full = {name: array.copy() for name, array in state.caches(1).items()}
    run = BoundCall.run

    def fail(call: BoundCall) -> None:
        run(call)
        raise BundleError("the dense graph fails")

    monkeypatch.setattr(BoundCall, "run", fail)
    with pytest.raises(BundleError, match="the dense graph fails"):
        state.decode([1, 2], np.array([True, False]))
    _assert_same(state.caches(1), full)
    assert state.lengths.tolist() == [9, LONGEST]


def _started(generator: Generator) -> Sequences:
    """Return a new object: sequence 0 has 12 tokens, sequence 1 has 9 tokens, and sequence 2 is free."""
    state = generator.sequences(BATCH, LONGEST)
    state.prefill(0, IDS[:12])
    state.prefill(1, IDS[20:27])
    for token in IDS[27:29]:
        _append(state, 1, "decode", [token])
    return state


def _assert_continues_as(state: Sequences, expected: Sequences) -> None:
    """Check that two objects have the same sequences, and go on with the same logits in sequences 0, 1 and 2."""
    assert state.lengths.tolist() == expected.lengths.tolist()
    for sequence in range(BATCH):
        assert np.array_equal(state.history(sequence), expected.history(sequence))
        _assert_same(state.caches(sequence), expected.caches(sequence))
    for tokens in ([1, 2, 3], [4, 5, 6]):
        assert np.array_equal(state.decode(tokens), expected.decode(tokens))
    for sequence in range(BATCH):
        first, second = (each.prefill(sequence, IDS[30:36], all_logits=True) for each in (state, expected))
        assert np.array_equal(first, second)


def _unexpected(arrays: Arrays) -> None:
    raise AssertionError(f"the request is not refused; the arrays are {list(arrays)}")


Operation = Callable[[Sequences], object]
REFUSED: dict[str, tuple[Operation, type[Exception], str]] = {
    "rewind to a longer text": (lambda s: s.rewind(0, 13), ArgumentError, "length: found 13, expected 0 to 12"),
    "rewind before the start": (lambda s: s.rewind(0, -1), ArgumentError, "length: found -1, expected 0 to 12"),
    "rewind to a fraction": (lambda s: s.rewind(0, 2.0), ArgumentError, "length: found 2.0, expected 0 to 12"),  # type: ignore[arg-type]
    "rewind of no sequence": (lambda s: s.rewind(3, 0), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "reset of no sequence": (lambda s: s.reset(-1), ArgumentError, "sequence: found -1, expected 0 to 2"),
    "fork of no sequence": (lambda s: s.fork(3), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "history of no sequence": (lambda s: s.history(3), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "caches of no sequence": (lambda s: s.caches(3), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "copy of no sequence": (lambda s: s.copy(2, s, 3, 1), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "copy to no sequence": (lambda s: s.copy(3, s, 0, 1), ArgumentError, "sequence: found 3, expected 0 to 2"),
    "copy of too many tokens": (lambda s: s.copy(2, s, 0, 13), ArgumentError, "length: found 13, expected 0 to 12"),
    "copy into a sequence in use": (
        lambda s: s.copy(1, s, 0, 3),
        RequestError,
        "sequence: 1 is in use (it has 9 tokens), expected a free sequence; reset it first",
    ),
    "load into a sequence in use": (
        lambda s: s.load(0, [1], _unexpected),
        RequestError,
        "sequence: 0 is in use (it has 12 tokens), expected a free sequence; reset it first",
    ),
    "load of too many ids": (
        lambda s: s.load(2, np.arange(25), _unexpected),
        RequestError,
        "ids: found 25 token ids, expected at most 24",
    ),
    "load of an id above the vocabulary": (
        lambda s: s.load(2, [1, 97], _unexpected),
        RequestError,
        "token id 97 is outside the vocabulary, expected 0 to 96",
    ),
    "load of a negative id": (
        lambda s: s.load(2, [1, -1], _unexpected),
        RequestError,
        "token id -1 is outside the vocabulary, expected 0 to 96",
    ),
    "load of a wrong id that the window does not reach": (
        lambda s: s.load(2, [97, 1, 1, 1, 1, 1, 1, 1], _unexpected),
        RequestError,
        "token id 97 is outside the vocabulary, expected 0 to 96",
    ),
    "load of numbers that are no ids": (
        lambda s: s.load(2, [1.5], _unexpected),
        RequestError,
        "token ids have dtype float64, expected integers",
    ),
    "load of a table": (
        lambda s: s.load(2, [[1, 2]], _unexpected),
        RequestError,
        "ids: found an array of shape [1, 2], expected a list of token ids",
    ),
}


@pytest.mark.parametrize("request_name", REFUSED)
def test_a_refused_request_changes_nothing(request_name: str, opened: Callable[[str], Generator]) -> None:
    operation, error, message = REFUSED[request_name]
    generator = opened("molkv")
    state, other = _started(generator), _started(generator)
    with pytest.raises(error, match=f"^{re.escape(message)}$") as caught:
        operation(state)
    assert type(caught.value) is error
    _assert_continues_as(state, other)


def test_a_fork_without_a_free_sequence_is_refused(opened: Callable[[str], Generator]) -> None:
    generator = opened("molkv")
    state, other = _started(generator), _started(generator)
    for each in (state, other):
        each.prefill(2, IDS[:3])
    message = "sequence: found 3 sequences in use, expected a free one; reset one"
    with pytest.raises(RequestError, match=f"^{message}$"):
        state.fork(0)
    _assert_continues_as(state, other)


@pytest.mark.parametrize("length", [8, 3])
def test_a_copy_that_is_longer_than_the_target_is_refused(length: int, opened: Callable[[str], Generator]) -> None:
    generator = opened("molkv")
    source, other, short = _started(generator), _started(generator), generator.sequences(1, length)
    with pytest.raises(RequestError, match=f"^ids: found 9 token ids, expected at most {length}$"):
        short.copy(0, source, 1, 9)
    assert short.lengths.tolist() == [0]
    _assert_continues_as(source, other)


@pytest.mark.parametrize("name", ["molkv", "int8 KV cache", "coreml float16", "nnapi"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_sequence_whose_cache_cannot_be_read_stays_free(
    name: str, error: type[BaseException], opened: Callable[[str], Generator]
) -> None:
    """Write NaN or the largest number before the error. Neither reaches the logits of the sequence's next text."""
    generator = opened(name)
    state, other = _started(generator), _started(generator)

    def read(arrays: Arrays) -> None:
        for array in arrays.values():
            assert array.shape[1] == 11
            array[...] = 127 if array.dtype == np.int8 else np.nan
        raise error("cut off")

    with pytest.raises(error, match="cut off"):
        state.load(2, IDS[:11], read)
    _assert_continues_as(state, other)


def test_a_loaded_sequence_continues_as_the_saved_one(opened: Callable[[str], Generator]) -> None:
    generator = opened("int8 KV cache")
    state, other = _started(generator), generator.sequences(BATCH, LONGEST)
    saved = {name: array.copy() for name, array in state.caches(1).items()}

    def read(arrays: Arrays) -> None:
        assert arrays.keys() == saved.keys()
        for name, array in arrays.items():
            array[...] = saved[name]

    other.load(1, IDS[20:29].tolist(), read)
    other.prefill(0, IDS[:12])
    _assert_continues_as(state, other)


def test_the_history_does_not_change_later_and_the_cache_has_a_row_for_each_token(
    opened: Callable[[str], Generator],
) -> None:
    for name in ("molkv", "coreml float16"):
        state = _started(opened(name))
        history = state.history(1)
        assert {array.shape for array in state.caches(1).values()} == {(2, 9, 16)}
        state.rewind(1, 3)
        state.prefill(1, IDS[40:46])
        assert np.array_equal(history, IDS[20:29])
        history[...] = 0
        assert np.array_equal(state.history(1), [*IDS[20:23], *IDS[40:46]])


DAMAGED: dict[str, Operation] = {
    "rewind": lambda s: s.rewind(0, 9),
    "copy": lambda s: s.copy(2, s, 0, 7),
    "fork": lambda s: s.fork(1),
    "load": lambda s: s.load(2, [1, 2, 3], _unexpected),
}


@pytest.mark.parametrize("operation", DAMAGED)
def test_a_record_that_cannot_be_read_changes_nothing(
    operation: str, opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened("molkv")
    state, other = _started(generator), _started(generator)

    def fail(*_: Any) -> Any:
        raise BundleError("the record of token id 3 is damaged")

    monkeypatch.setattr(ExpertStore, "gather", fail)
    with pytest.raises(BundleError, match="the record of token id 3 is damaged"):
        DAMAGED[operation](state)
    monkeypatch.undo()
    _assert_continues_as(state, other)


IN_ANOTHER_THREAD: dict[str, Operation] = {
    "prefill": lambda s: s.prefill(2, [1]),
    "decode": lambda s: s.decode([1, 2, 3]),
    "rewind": lambda s: s.rewind(0, 5),
    "reset": lambda s: s.reset(0),
    "fork": lambda s: s.fork(0),
    "copy": lambda s: s.copy(2, s, 0, 5),
    "load": lambda s: s.load(2, [1], _unexpected),
}


@pytest.mark.parametrize("operation", [*IN_ANOTHER_THREAD, "copy to another object"])
def test_sequences_that_another_thread_uses_are_refused(operation: str, opened: Callable[[str], Generator]) -> None:
    generator = opened("molkv")
    state, other, target = _started(generator), _started(generator), generator.sequences()
    operations = {**IN_ANOTHER_THREAD, "copy to another object": lambda s: target.copy(0, s, 0, 5)}

    def read(_: Arrays) -> None:
        """Use the sequences in another thread while this one loads a sequence."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(operations[operation], state).result()

    with pytest.raises(RequestError, match="this Sequences object is in use by another thread; make one"):
        state.load(2, [1, 2], read)
    assert target.lengths.tolist() == [0]
    _assert_continues_as(state, other)


def _read_ids(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the list of the token ids of each later call of `ExpertStore.gather`."""
    calls: list[list[int]] = []
    gather = generator.store.gather

    def count(ids: Ids, out: Any = None) -> Any:
        calls.append(ids.tolist())
        return gather(ids, out)

    monkeypatch.setattr(generator.store, "gather", count)
    return calls


@pytest.mark.parametrize("less", range(13))
def test_a_rewind_reads_the_records_that_the_window_has_lost(
    less: int, opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next position sees the W - 1 positions before it. The last W - 1 positions are in the window."""
    generator = opened("molkv")
    state, read_ids = generator.sequences(BATCH, LONGEST), _read_ids(generator, monkeypatch)
    state.prefill(1, IDS[:12])
    state.rewind(1, 12 - less)
    lost = [p for p in range(12 - less) if 12 - less - (WINDOW - 1) <= p < 12 - (WINDOW - 1)]
    assert len(lost) == min(less, WINDOW - 1, 12 - less)
    assert read_ids == ([IDS[lost].tolist()] if lost else [])


def test_a_second_rewind_does_not_read_the_same_records_again(
    opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened("molkv")
    state, read_ids = generator.sequences(1, LONGEST), _read_ids(generator, monkeypatch)
    state.prefill(0, IDS[:16])
    for length in (14, 13, 13, 6, 0):
        state.rewind(0, length)
    assert read_ids == [IDS[10:12].tolist(), IDS[9:10].tolist(), IDS[2:6].tolist()]


def test_a_copy_reads_the_records_of_its_window(
    opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened("molkv")
    state, read_ids = generator.sequences(BATCH, LONGEST), _read_ids(generator, monkeypatch)
    state.prefill(0, IDS[:12])
    state.fork(0)
    state.copy(2, state, 0, 3)
    assert read_ids == [IDS[8:12].tolist(), IDS[:3].tolist()]


@pytest.mark.parametrize("name", ["mole", "dense", "one slot", "nnapi"])
def test_models_that_look_at_no_earlier_experts_read_no_record(
    name: str, opened: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened(name)
    state, read_ids = generator.sequences(BATCH, LONGEST), _read_ids(generator, monkeypatch)
    state.prefill(0, IDS[:12])
    for length in (11, 4):
        state.rewind(0, length)
    state.fork(0)
    state.copy(2, state, 0, 3)
    state.reset(0)
    assert read_ids == []
