"""Compare several methods to read single records, and the records of prompts, from a cold and a warm page cache."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from molkv_bundle import RECORDS, Access, Bundle
from molkv_export.bench.machine import count_in_page_cache, drop_from_page_cache
from molkv_runtime import ExpertStore

_READ_THREADS = 16  # as many as the driver has

Ids = npt.NDArray[np.int64]
Gather = Callable[[Ids], object]

SINGLE_READS = 400
PROMPTS = (64, 512, 4096)


class Shards:
    """The positions of records in files, computed without the driver's code."""

    def __init__(self, bundle: Bundle) -> None:
        self.shards = bundle.manifest.experts.shards
        self.paths = [bundle.path / shard.file for shard in self.shards]
        self.stride = bundle.manifest.experts.stride
        self.firsts = np.array([shard.first_row for shard in self.shards])
        self.starts = [shard.data_offset for shard in self.shards]

    def place(self, token: int) -> tuple[int, int]:
        """Return the shard of a token id, and the index of its record in the shard."""
        shard = int(np.searchsorted(self.firsts, token, side="right")) - 1
        return shard, token - int(self.firsts[shard])

    def offset(self, token: int) -> tuple[int, int]:
        """Return the shard of a token id, and the position of its record in the file, in bytes."""
        shard, index = self.place(token)
        return shard, self.starts[shard] + index * self.stride


@contextmanager
def _driver(bundle: Bundle, access: Access) -> Iterator[Gather]:
    with ExpertStore(bundle, access=access) as store:
        buffer = store.buffer(max(PROMPTS))
        buffer.view(np.uint8)[:] = 0  # excludes the first access to the memory from the measurement
        yield lambda ids: store.gather(ids, buffer)


@contextmanager
def _raw_mmap(bundle: Bundle, advice: int | None) -> Iterator[Gather]:
    shards, out = Shards(bundle), _out(bundle)
    maps = []
    for path in shards.paths:
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        if advice is not None:
            maps[-1].madvise(advice)

    def gather(ids: Ids) -> None:
        for row, token in enumerate(ids.tolist()):
            shard, offset = shards.offset(token)
            out[row] = np.frombuffer(maps[shard], np.uint8, shards.stride, offset)

    yield gather
    for mapped in maps:
        mapped.close()


@contextmanager
def _memmap(bundle: Bundle) -> Iterator[Gather]:
    """Read by the simplest method: a numpy.memmap for each file, indexed by all rows at once."""
    shards, out = Shards(bundle), _out(bundle)
    tables = [
        np.memmap(path, np.uint8, "r", start, (shard.count, shards.stride))
        for path, start, shard in zip(shards.paths, shards.starts, shards.shards, strict=True)
    ]

    def gather(ids: Ids) -> None:
        owner = np.searchsorted(shards.firsts, ids, side="right") - 1
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            out[rows] = tables[shard][ids[rows] - shards.firsts[shard]]

    yield gather


@contextmanager
def _safetensors(bundle: Bundle) -> Iterator[Gather]:
    shards, out = Shards(bundle), _out(bundle)
    files: list[Any] = [safe_open(path, "np") for path in shards.paths]
    tables = [file.get_slice(RECORDS) for file in files]

    def gather(ids: Ids) -> None:
        for row, token in enumerate(ids.tolist()):
            shard, index = shards.place(token)
            out[row] = tables[shard][index : index + 1][0]

    yield gather


@contextmanager
def _direct(bundle: Bundle, threads: int) -> Iterator[Gather]:
    """Read without the page cache (O_DIRECT), with many reads in parallel. This measures the limit of the disk."""
    shards = Shards(bundle)
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in shards.paths]
    starts, descriptors = np.array(shards.starts), np.array(files)
    memory = memoryview(mmap.mmap(-1, max(PROMPTS) * shards.stride))  # page-aligned, as O_DIRECT requires
    memory[:] = bytes(len(memory))
    with ThreadPoolExecutor(threads) as pool:

        def work(first: int, places: list[tuple[int, int]]) -> None:
            for row in range(first, len(places), threads):
                file, offset = places[row]
                os.preadv(file, [memory[row * shards.stride : (row + 1) * shards.stride]], offset)

        def gather(ids: Ids) -> None:
            ids = np.sort(ids)
            owner = np.searchsorted(shards.firsts, ids, side="right") - 1
            offsets = starts[owner] + (ids - shards.firsts[owner]) * shards.stride
            places = list(zip(descriptors[owner].tolist(), offsets.tolist(), strict=True))
            if threads == 1:
                work(0, places)
            else:
                list(pool.map(work, range(threads), [places] * threads))

        yield gather
    for file in files:
        os.close(file)


def _out(bundle: Bundle) -> npt.NDArray[np.uint8]:
    return np.zeros((max(PROMPTS), bundle.manifest.experts.stride), np.uint8)


def read_benchmark(folder: Path, runs: int) -> str:
    """Compare all methods of reading, and return tables."""
    bundle = Bundle(folder)
    ways: dict[str, Callable[[], Any]] = {
        "ExpertStore, positioned reads": lambda: _driver(bundle, "pread"),
        "ExpertStore, mmap": lambda: _driver(bundle, "mmap"),
        "plain mmap": lambda: _raw_mmap(bundle, None),
        "plain mmap, MADV_RANDOM": lambda: _raw_mmap(bundle, mmap.MADV_RANDOM),
        "numpy.memmap": lambda: _memmap(bundle),
        "safetensors slices": lambda: _safetensors(bundle),
    }
    proof = _proof(bundle)
    return "\n\n".join([proof, _single(bundle, ways, runs), _prompts(bundle, ways, runs)])


def _proof(bundle: Bundle) -> str:
    shards = Shards(bundle)
    offsets = [shards.starts[0] + index * shards.stride for index in range(0, shards.shards[0].count, 7)]
    path = shards.paths[0]
    with ExpertStore(bundle) as store:
        store.gather(np.arange(shards.shards[0].count))
    warm = count_in_page_cache(path, offsets, shards.stride)
    drop_from_page_cache(shards.paths)
    cold = count_in_page_cache(path, offsets, shards.stride)
    return (
        f"{warm} of {len(offsets)} records of the first shard were in the page cache after they were read, and {cold} "
        "after the file was dropped from the page cache (tested by reads with RWF_NOWAIT)."
    )


def _single(bundle: Bundle, ways: dict[str, Callable[[], Any]], runs: int) -> str:
    """Measure reads of single records, and return a table."""
    shards = Shards(bundle)
    everyone = {"O_DIRECT (the disk's limit)": lambda: _direct(bundle, 1), **ways}
    cold: dict[str, list[float]] = {name: [] for name in everyone}
    warm: dict[str, list[float]] = {name: [] for name in everyone}
    random = np.random.default_rng(0)
    for _ in range(runs):
        for name, way in everyone.items():
            drop_from_page_cache(shards.paths)
            ids = random.choice(bundle.config.vocab_size, SINGLE_READS, replace=False)
            with way() as gather:
                for spent in (cold, warm):
                    for token in ids:
                        one = np.array([token])
                        start = time.perf_counter()
                        gather(one)
                        spent[name].append(time.perf_counter() - start)
            del gather  # also frees the memory maps, which would keep pages in the cache
    bound = np.percentile(cold["O_DIRECT (the disk's limit)"], 50)
    lines = []
    for name in everyone:
        cells = [f"{1e6 * np.percentile(times[name], p):.0f}" for times in (cold, warm) for p in (50, 95, 99)]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.percentile(cold[name], 50) / bound:.2f} |")
    return "\n".join(
        [
            f"One record of {shards.stride} bytes, microseconds, {runs * SINGLE_READS} reads:",
            "",
            "| | cold p50 | p95 | p99 | warm p50 | p95 | p99 | cold p50 / limit |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _prompts(bundle: Bundle, ways: dict[str, Callable[[], Any]], runs: int) -> str:
    """Measure reads of all records of a prompt, and return a table."""
    shards = Shards(bundle)
    limit = f"O_DIRECT, {_READ_THREADS} threads (the disk's limit)"
    everyone = {limit: lambda: _direct(bundle, _READ_THREADS), **ways}
    rates: dict[tuple[str, int, str], list[float]] = {}
    random = np.random.default_rng(1)
    for run in range(runs):
        for count in PROMPTS:
            ids = random.choice(bundle.config.vocab_size, count, replace=False)
            for name, way in everyone.items():
                if name == "plain mmap, MADV_RANDOM" and count == max(PROMPTS) and run:
                    continue  # this method reads page by page, which takes long, and its times hardly vary
                drop_from_page_cache(shards.paths)
                with way() as gather:
                    for state in ("cold", "warm"):
                        start = time.perf_counter()
                        gather(ids)
                        rate = count / (time.perf_counter() - start)
                        rates.setdefault((name, count, state), []).append(rate)
                del gather  # also frees the memory maps, which would keep pages in the cache
    lines = []
    for name in everyone:
        cells = []
        for state in ("cold", "warm"):
            cells += [f"{statistics.median(rates[name, count, state]):.0f}" for count in PROMPTS]
        ratios = [
            f"{statistics.median(rates[limit, count, 'cold']) / statistics.median(rates[name, count, 'cold']):.2f}"
            for count in PROMPTS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(ratios)} |")
    return "\n".join(
        [
            f"All records of a prompt, records a second, medians of {runs} runs:",
            "",
            f"| distinct tokens | {' | '.join(f'cold {n}' for n in PROMPTS)} | "
            f"{' | '.join(f'warm {n}' for n in PROMPTS)} | cold: time / time of the limit |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )
