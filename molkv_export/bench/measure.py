"""Measure the speed of a bundle."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_bundle import ArgumentError, Bundle
from molkv_export.bench.machine import can_drop_from_page_cache, drop_from_page_cache, memory_bandwidth, peak_rss
from molkv_export.bench.report import BenchReport, Decode, Prefill, Shares, Storage
from molkv_export.bench.stopwatch import Stopwatch, TimedGraph, TimedStore
from molkv_runtime import (
    DenseGraph,
    Generator,
    Sampling,
    Sequences,
    Target,
    cache_bytes,
    describe_placements,
    open_store,
    resolve,
    window_bytes,
)

PROMPTS = (64, 256, 1024)
CONTEXTS = (128, 512, 1024)


def bench(
    bundle: str | Path,
    *,
    prompts: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    steps: int = 64,
    runs: int = 3,
    storage: Sequence[Storage] | None = None,
    target: Target = Target(),
    profile: str = "",
    report_progress: Callable[[str], object] = lambda _: None,
) -> BenchReport:
    """Measure prefill and decode of a bundle on random token ids.

    Args:
        bundle: Folder of the bundle, or its URL (see `Bundle`).
        prompts: Prompt lengths in tokens; by default, those of PROMPTS that fit the model's context.
        contexts: Sequence lengths at which decode ends; by default, those of CONTEXTS that fit the model's context.
        batches: Batch sizes of decode.
        steps: Number of decode steps in a run.
        runs: Number of measured runs, after one warm-up run.
        storage: "warm": the records were read before. "cold": the store is dropped from the page cache before each run.
            By default, both, or only "warm" if this system cannot drop files from its page cache, or the bundle
            is remote.
        target: Provider and options that run the graph. By default, one thread per core.
        profile: Profile of the bundle; by default, the best profile for the provider.
        report_progress: Called with a description of each step.

    Raises:
        ArgumentError: A value is impossible, for example a length outside the model's context.
        RequestError: A batch exceeds the RAM.
        BundleError, ProviderError: The bundle cannot be run.
    """
    rss_before = peak_rss()
    opened = Bundle(bundle, profiles=resolve(target.provider).profiles, profile=profile)
    prompts = _lengths(opened, "prompts", prompts, PROMPTS, least=1)
    contexts = _lengths(opened, "contexts", contexts, CONTEXTS, least=2)
    _check_request(batches, steps, runs)
    threads = (os.cpu_count() or 1) if target.threads is None else target.threads
    report_progress("loading")
    runner = _Runner(opened, target._replace(threads=threads), runs)
    prefill, decode = _measure(runner, prompts, contexts, batches, steps, _storage(storage, opened), report_progress)
    peak = max(rss_before, peak_rss())  # Linux sums a counter per CPU roughly: a later peak can be some pages lower
    report_progress("measuring memory bandwidth")  # measured last, because its array would raise the peak RSS
    bandwidth = memory_bandwidth(threads)
    return BenchReport(
        bundle=str(bundle),
        dense_dtype=opened.graph().dense_dtype,
        experts_dtype=opened.manifest.experts.dtype,
        profile=opened.profile,
        provider=target.provider,
        placements=describe_placements(runner.placements),
        threads=threads,
        runs=runs,
        bandwidth=bandwidth,
        weights=runner.weights,
        peak_rss=peak,
        rss_before=rss_before,
        prefill=prefill,
        decode=[runner.with_bandwidth(one, bandwidth) for one in decode],
    )


def _measure(
    runner: _Runner,
    prompts: Sequence[int],
    contexts: Sequence[int],
    batches: Sequence[int],
    steps: int,
    storage: Sequence[Storage],
    report_progress: Callable[[str], object],
) -> tuple[list[Prefill], list[Decode]]:
    # This raises an error for a batch that exceeds the RAM, before any measurement.
    for context, batch in product(contexts, batches):
        runner.sequences(batch, context)
    prefill, decode = [], []
    for kind in storage:
        for prompt in prompts:
            report_progress(f"measuring {kind} prefill of {prompt} tokens")
            prefill.append(runner.prefill(prompt, kind))
        for context, batch in product(contexts, batches):
            report_progress(f"measuring {kind} decode up to a context of {context} tokens, batch {batch}")
            decode.append(runner.decode(context, batch, min(steps, context - 1), kind))
    return prefill, decode


def _check_request(batches: Sequence[int], steps: int, runs: int) -> None:
    for name, values in (("batches", batches), ("steps", [steps]), ("runs", [runs])):
        if min(values, default=0) < 1:
            raise ArgumentError(name, min(values, default="none"), "1 or more")


def _storage(asked: Sequence[Storage] | None, bundle: Bundle) -> Sequence[Storage]:
    can_be_cold = can_drop_from_page_cache() and bundle.remote is None
    if asked is None:
        return ("warm", "cold") if can_be_cold else ("warm",)
    if "cold" in asked and not can_be_cold:
        raise ArgumentError(
            "storage",
            "both" if "warm" in asked else "cold",
            "warm: this system cannot drop files from its page cache, or the bundle is remote",
        )
    return asked


def _lengths(bundle: Bundle, name: str, asked: Sequence[int] | None, usual: Sequence[int], least: int) -> Sequence[int]:
    context = bundle.config.max_position_embeddings
    for length in asked or ():
        if not least <= length <= context:
            raise ArgumentError(name, length, f"{least} to {context} (the model's context)")
    return asked or [length for length in usual if length <= context] or [context]


class _Runner:
    """A loaded bundle with a timed graph and a timed store."""

    def __init__(self, bundle: Bundle, target: Target, runs: int) -> None:
        self._stopwatch = Stopwatch()
        self._shards = [] if bundle.remote else [bundle.path / shard.file for shard in bundle.manifest.experts.shards]
        sessions = DenseGraph(bundle, target)
        self.placements = sessions.placements
        graph = TimedGraph(sessions, self._stopwatch)
        store = TimedStore(open_store(bundle), self._stopwatch)
        self._generator = Generator(bundle, graph=graph, store=store)
        self._config, self._runs = bundle.config, runs
        self._choose = Sampling().choose
        self._kv_dtype, self._window_dtype = bundle.graph().kv_dtype, bundle.graph().window_dtype
        info = bundle.graph()
        # ONNX Runtime converts float16 weights to float32 when it loads them.
        self.weights = bundle.manifest.files[info.data].size * (2 if info.dense_dtype == "float16" else 1)

    def sequences(self, batch: int, length: int) -> Sequences:
        return self._generator.sequences(batch, length)

    def prefill(self, prompt: int, storage: Storage) -> Prefill:
        state, ids = self.sequences(1, prompt), self._ids(prompt)
        times, watched = [], []
        for _ in range(self._runs + 1):
            self._start(state, storage)
            start = time.perf_counter()
            logits = state.prefill(0, ids)
            with self._stopwatch.time("sampling"):
                self._choose(logits[0])
            times.append(time.perf_counter() - start)
            watched.append(self._shares(times[-1]))
        seconds = statistics.median(times[1:])
        read = self._stopwatch.bytes_read
        return Prefill(prompt, storage, seconds, prompt / seconds, _median(watched[1:]), read)

    def decode(self, context: int, batch: int, steps: int, storage: Storage) -> Decode:
        state, ids = self.sequences(batch, context), self._ids(batch * context).reshape(batch, context)
        times, watched = [], []
        for run in range(self._runs + 1):
            state.lengths[:] = 0
            for sequence in range(batch):
                state.prefill(sequence, ids[sequence, : context - steps])
            if run == 0 and storage == "warm":
                self._steps(state, ids[:, context - steps :])
                continue
            self._start(state, storage, keep=context - steps)
            spent = self._steps(state, ids[:, context - steps :])
            if run:
                times.append(spent)
                watched.append(self._shares(sum(spent)))
        flat = np.concatenate(times)
        p50, p95, p99 = np.percentile(flat, [50, 95, 99]).tolist()
        rate = batch * steps / statistics.median(sum(spent) for spent in times)
        return Decode(
            context, batch, storage, rate, p50, p95, p99, _median(watched), self._stopwatch.bytes_read // steps, 0.0
        )

    def _start(self, state: Sequences, storage: Storage, keep: int = 0) -> None:
        state.lengths[:] = keep
        if storage == "cold":
            drop_from_page_cache(self._shards)
        self._stopwatch.reset()

    def _steps(self, state: Sequences, ids: npt.NDArray[np.int64]) -> list[float]:
        times = []
        for tokens in ids.T:
            start = time.perf_counter()
            logits = state.decode(tokens)
            with self._stopwatch.time("sampling"):
                for row in logits:
                    self._choose(row)
            times.append(time.perf_counter() - start)
        return times

    def _ids(self, count: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(0).integers(0, self._config.vocab_size, count)

    def _shares(self, seconds: float) -> Shares:
        gather, graph, sampling = (self._stopwatch.seconds[name] / seconds for name in ("gather", "graph", "sampling"))
        return Shares(gather, graph, sampling, 1 - gather - graph - sampling)

    def with_bandwidth(self, decode: Decode, bandwidth: float) -> Decode:
        window = window_bytes(self._config, decode.context, self._window_dtype)
        each = cache_bytes(self._config, decode.context, self._kv_dtype) + window
        least = (self.weights + decode.batch * each) / bandwidth
        return msgspec.structs.replace(decode, bandwidth_share=least / decode.p50)


def _median(shares: list[Shares]) -> Shares:
    gather, graph, sampling = (
        statistics.median(getattr(one, name) for one in shares) for name in ("gather", "graph", "sampling")
    )
    return Shares(gather, graph, sampling, 1 - gather - graph - sampling)
