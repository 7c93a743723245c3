"""Memory of decode steps and prompts, and the state of a sequence after a prompt that failed."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_bundle import BundleError, DenseDtype, RequestError, read_golden
from molkv_export import GraphOptions
from molkv_runtime import BoundCall, ExpertStore, Generator
from molkv_runtime.memory import available_memory
from tests.recording import RecordingGraph, record


@pytest.fixture
def recorded(stdlib_mini_bundle: Path) -> tuple[Generator, RecordingGraph]:
    generator = Generator(stdlib_mini_bundle)
    return generator, record(generator)


def test_a_decode_step_binds_nothing_and_allocates_less_than_two_records(
    recorded: tuple[Generator, RecordingGraph],
) -> None:
    generator, recorder = recorded
    state = generator.sequences(1)
    state.prefill(0, np.arange(40))
    token = np.array([7])
    state.decode(token)
    bound = len(recorder.bound)
    tracemalloc.start()
    try:
        for _ in range(5):
            state.decode(token)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            state.decode(token)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(recorder.bound) == bound
    record = 2 * generator.store.buffer(1).nbytes  # in float32
    logits = 4 * generator.config.vocab_size
    assert peak < 2 * record
    assert peak < logits
    assert after - before < record


def test_a_long_prompt_needs_the_memory_of_a_chunk(recorded: tuple[Generator, RecordingGraph]) -> None:
    generator, recorder = recorded
    needs = []
    for length in (128, 512):
        state = generator.sequences(1, 512, prefill_chunk=64)
        recorder.bound.clear()
        state.prefill(0, np.arange(length))
        assert len(recorder.bound) == length // 64
        kept = [outputs["logits"].shape[1] for _, outputs in recorder.bound]
        assert kept == [0] * (length // 64 - 1) + [1]  # only of the last position
        places = {array.ctypes.data: array.nbytes for inputs, _ in recorder.bound for array in inputs.values()}
        experts = [
            {inputs[name].ctypes.data for inputs, _ in recorder.bound} for name in ("expert_key.0", "expert_value.3")
        ]
        assert all(len(places) == 1 for places in experts)  # all chunks use the same memory
        needs.append(sum(places[next(iter(place))] for place in experts))
    assert needs[0] == needs[1]


@pytest.mark.parametrize("name", ["molkv", "mole"])
@pytest.mark.parametrize(("owner", "method", "call"), [(ExpertStore, "start_gather", 3), (BoundCall, "run", 4)])
def test_a_prompt_that_fails_leaves_the_sequence_as_it_was(
    name: str, owner: type, method: str, call: int, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail to read a record of a middle chunk, or fail to compute the last chunk."""
    generator = Generator(bundles(name))
    state, other = (generator.sequences(prefill_chunk=5) for _ in range(2))
    for each in (state, other):
        each.prefill(0, np.arange(12))
    original, calls = getattr(owner, method), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        done = original(*arguments)
        if len(calls) == call:
            raise BundleError("damaged")
        return done

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(BundleError, match="damaged"):
        state.prefill(0, np.arange(30, 50))
    monkeypatch.undo()
    assert state.lengths.tolist() == other.lengths.tolist() == [12]
    for token in (60, 61, 62):
        assert np.array_equal(state.decode([token]), other.decode([token]))


def test_files_in_the_page_cache_count_as_free(tmp_path: Path) -> None:
    meminfo, group = tmp_path / "proc" / "meminfo", tmp_path / "sys" / "fs" / "cgroup"
    meminfo.parent.mkdir()
    group.mkdir(parents=True)
    assert available_memory(tmp_path) > 2**60
    meminfo.write_text("MemTotal:  9000 kB\nMemFree:  1000 kB\nMemAvailable:  2000 kB\n")
    assert available_memory(tmp_path) == 2_048_000
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 200000\nactive_file 300000\ninactive_file 400000\n")
    assert available_memory(tmp_path) == 800_000
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 2_048_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory is available")
def test_the_memory_of_this_machine_is_known() -> None:
    assert 0 < available_memory() < 2**60


def test_sequences_that_do_not_fit_into_memory_are_refused_before_any_is_allocated(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molkv_runtime.memory.available_memory", lambda: 10 * 1024**2)
    generator.sequences(4)
    with pytest.raises(RequestError, match=r"1000 sequences of 48 tokens need \d+ MiB of RAM, 10 MiB are free"):
        generator.sequences(1000)


def test_a_full_sequence_takes_no_further_token(generator: Generator) -> None:
    state = generator.sequences(max_length=4)
    state.prefill(0, [1, 2, 3])
    state.decode([4])
    with pytest.raises(RequestError, match=r"reached max_length \(4 tokens\)"):
        state.decode([5])
    with pytest.raises(RequestError, match="the prompt has 1 tokens, expected at most 0"):
        state.prefill(0, [5])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_a_prompt_of_several_chunks_runs_with_every_dense_dtype(
    bundles: Callable[..., Path], dtype: DenseDtype
) -> None:
    generator = Generator(bundles("molkv", graph=GraphOptions(dtype)))
    prompt = [7, 42, 9, 3, 11, 5, 8, 2, 60, 1, 44, 13]
    chunked = generator.sequences(prefill_chunk=5).prefill(0, prompt)  # all chunks but the last want no logits
    limit = read_golden(generator.bundle).limits.max_abs
    assert chunked == pytest.approx(generator.sequences().prefill(0, prompt), abs=limit)
