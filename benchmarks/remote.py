"""Measure a bundle on the Hub against the same bundle on the disk: the first run, and the second one.

    python -m benchmarks.remote BUNDLE [--delay 0.02]

A server on this machine (`tests/hub_server.py`) stands for the Hub. Each run reads a prompt and takes decode steps,
with random token ids. So almost every token is new: this is the worst case for the record cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.hub_server import TOKEN, Hub

PROMPT, STEPS = 64, 64


class Run(NamedTuple):
    """One run of a bundle."""

    opening: float  # seconds until the graph is loaded
    prefill: float  # tokens a second
    decode: float  # tokens a second
    requests: int  # for records; the Hub answers each one with a redirect
    record_bytes: int
    other_bytes: int  # of manifest, graph and weights


def main() -> None:
    """Print a table for each delay: the medians of several runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--delay", type=float, nargs="*", default=[0.0, 0.02], help="seconds before each answer")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    hub = Hub()
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    hub.serve("owner/name", arguments.bundle)
    print("| delay | bundle | opening, s | prefill, tokens/s | decode, tokens/s | requests for records | MB of records "
          "| other MB |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    locations = {"on the disk": str(arguments.bundle), "first run": "hf://owner/name", "second run": "hf://owner/name"}
    for hub.delay in arguments.delay:
        runs: dict[str, list[Run]] = {name: [] for name in locations}
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                os.environ |= {"MOLKV_CACHE": folder, "HF_HOME": folder}
                for name, location in locations.items():
                    runs[name].append(_run(location, hub))
        for name, found in runs.items():
            median = [statistics.median(numbers) for numbers in zip(*found, strict=True)]
            opening, prefill, decode, requests, records, others = median
            cells = [f"{hub.delay * 1000:.0f} ms", name, f"{opening:.2f}", f"{prefill:.0f}", f"{decode:.1f}"]
            cells += [f"{requests:.0f}", f"{records / 1e6:.1f}", f"{others / 1e6:.1f}"]
            print(f"| {' | '.join(cells)} |")


def _run(location: str, hub: Hub) -> Run:
    from molkv_runtime import Generator  # after the settings of the Hub

    hub.log.clear()
    start = time.perf_counter()
    generator = Generator(location, prefix_cache_bytes=0)
    opening = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(0, generator.config.vocab_size, PROMPT + STEPS)
    state = generator.sequences(max_length=len(ids))
    start = time.perf_counter()
    state.prefill(0, ids[:PROMPT])
    middle = time.perf_counter()
    for token in ids[PROMPT:]:
        state.decode([token])
    end = time.perf_counter()
    opened = sum(request.size for request in hub.log)
    asked = hub.requests(r"GET /owner/name/resolve/.*experts-")
    stride = generator.bundle.manifest.experts.stride
    records = sum(_size(request.range) for request in asked)
    assert records % stride == 0
    return Run(opening, PROMPT / (middle - start), STEPS / (end - middle), len(asked), records, opened - records)


def _size(asked: str) -> int:
    start, stop = map(int, asked.removeprefix("bytes=").split("-"))
    return stop + 1 - start


if __name__ == "__main__":
    main()
