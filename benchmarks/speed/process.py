"""A process that holds one contender and runs what it is told to, one line of JSON at a time.

`python -m benchmarks.speed.process KIND FOLDER THREADS`; onnxruntime-genai has a process of its own in
`genai_process.py` that speaks the same lines. Order: {"what": "prefill" or "decode", "length": tokens, "batch":
sequences}. Answer: {"seconds": for the prompt, or the median of a step; "rss": peak, bytes}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.speed import STEPS
from molkv_export.bench.machine import peak_rss


class Contender(Protocol):
    """A runtime with a model in it."""

    def start(self, batch: int) -> None:
        """Begin anew with some sequences."""

    def prefill(self, ids: np.ndarray) -> None:
        """Take in a prompt [n], the same for all sequences, up to the first logits."""

    def decode(self, token: int) -> None:
        """Take in one more token of every sequence, up to its logits."""


def answer(contender: Contender, vocab_size: int, order: dict[str, object]) -> dict[str, float]:
    """Run one order."""
    length, batch = int(str(order["length"])), int(str(order["batch"]))
    ids = np.random.default_rng(0).integers(0, vocab_size, length)
    contender.start(batch)
    if order["what"] == "prefill":
        start = time.perf_counter()
        contender.prefill(ids)
        return {"seconds": time.perf_counter() - start, "rss": peak_rss()}
    contender.prefill(ids[: length - STEPS])
    times = []
    for token in ids[length - STEPS :].tolist():
        start = time.perf_counter()
        contender.decode(token)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "rss": peak_rss()}


def make(kind: str, folder: Path, threads: int) -> Contender:
    """Load a contender: "storage", "ram" (a bundle's folder), "eager" or "naive" (a checkpoint's)."""
    if kind in ("storage", "ram"):
        from benchmarks.speed.ours import Driver

        return Driver(folder, threads, in_ram=kind == "ram")
    if kind == "eager":
        from benchmarks.speed.eager import Eager

        return Eager(folder, threads)
    from benchmarks.speed.naive import Naive

    return Naive(folder, threads)


def main() -> None:
    """Answer each line of JSON with one."""
    kind, folder, threads = sys.argv[1:]
    contender = make(kind, Path(folder), int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(contender, 50_304, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
