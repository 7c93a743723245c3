"""Requests to rewind, fork, copy and load sequences: refused ones, failing ones, and the records that they read."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from molkv_bundle import ArgumentError, Arrays, BundleError, Ids, RequestError
from molkv_runtime import BoundCall, ExpertStore, Generator, Sequences
from tests.molkv_runtime.living import BATCH, append, assert_same

LONGEST, VOCAB = 24, 97
WINDOW = 5  # of the configuration "molkv"
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
        append(each, 1, last, IDS[LONGEST - 1 : LONGEST].tolist())
    state.prefill(0, IDS[:9])
    full = {name: array.copy() for name, array in state.caches(1).items()}
    for token in IDS[9:20]:
        state.decode([token, 3, token], np.array([True, False, True]))
        assert_same(state.caches(1), full)
    longer.copy(1, state, 1, LONGEST)
    assert_same(longer.caches(1), full)
    for token in IDS[LONGEST:35]:
        assert np.array_equal(append(longer, 1, "decode", [token]), append(fresh, 1, "decode", [token]))
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
    assert_same(state.caches(1), full)
    assert state.lengths.tolist() == [9, LONGEST]


def _started(generator: Generator) -> Sequences:
    """Return a new object: sequence 0 has 12 tokens, sequence 1 has 9 tokens, and sequence 2 is free."""
    state = generator.sequences(BATCH, LONGEST)
    state.prefill(0, IDS[:12])
    state.prefill(1, IDS[20:27])
    for token in IDS[27:29]:
        append(state, 1, "decode", [token])
    return state


def _assert_continues_as(state: Sequences, expected: Sequences) -> None:
    """Check that two objects have the same sequences, and go on with the same logits in sequences 0, 1 and 2."""
    assert state.lengths.tolist() == expected.lengths.tolist()
    for sequence in range(BATCH):
        assert np.array_equal(state.history(sequence), expected.history(sequence))
        assert_same(state.caches(sequence), expected.caches(sequence))
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
    "rewind to a fraction": (
        lambda s: s.rewind(0, 2.0),  # type: ignore[arg-type]
        ArgumentError,
        "length: found 2.0, expected an integer, 0 to 12",
    ),
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

    with pytest.raises(RequestError, match="these sequences are in use by another thread"):
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
