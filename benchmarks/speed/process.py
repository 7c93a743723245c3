"""A process with one contender (a runtime with a model). It reads orders and writes answers, each one line of JSON.

`python -m benchmarks.speed.process KIND FOLDER THREADS`

    order:   {"what": "prefill" or "decode", "length": tokens, "batch": sequences}
    answer:  {"seconds": time of the prefill, or median time of a decode step, "rss": peak resident size in bytes}

Before each order, the process runs a short order of the same kind, which it does not measure: the first call after the
turn of another contender takes up to 40 ms longer, because the threads of ONNX Runtime wait for work in a loop.

`genai_process.py` is a similar process for onnxruntime-genai, with the same orders and answers.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.speed import STEPS, WARM_UP
from molkv_export.bench.machine import peak_rss


class Contender(Protocol):
    """A runtime with a loaded model."""

    vocab_size: int

    def start(self, batch: int) -> None:
        """Start with `batch` empty sequences."""

    def prefill(self, ids: np.ndarray) -> None:
        """Prefill a prompt [n], the same for all sequences, and compute the logits of its last position."""

    def decode(self, token: int) -> None:
        """Append a token to every sequence, and compute its logits."""


def answer(contender: Contender, order: dict[str, object]) -> dict[str, float]:
    """Run an order, and return the answer."""
    length, batch = int(str(order["length"])), int(str(order["batch"]))
    ids = np.random.default_rng(0).integers(0, contender.vocab_size, length)
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
    """Load a contender. For "storage" and "ram", `folder` is a bundle; for "eager" and "naive", a checkpoint."""
    if kind in ("storage", "ram"):
        from benchmarks.speed.ours import Driver

        return Driver(folder, threads, in_ram=kind == "ram")
    if kind == "eager":
        from benchmarks.speed.eager import Eager

        return Eager(folder, threads)
    from benchmarks.speed.naive import Naive

    return Naive(folder, threads)


def main() -> None:
    """Answer each line of JSON with a line of JSON."""
    kind, folder, threads = sys.argv[1:]
    contender = make(kind, Path(folder), int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer(contender, {**order, "length": WARM_UP})
        print(json.dumps(answer(contender, order)), flush=True)


if __name__ == "__main__":
    main()
