"""A process with the Python driver as a contender, with KV caches of CONTEXT tokens.

`python -m benchmarks.drivers.python_process BUNDLE THREADS [CONTEXT]`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.speed import CONTEXT
from benchmarks.speed.process import answer
from molkv_runtime import Generator, Target


class Driver:
    """A bundle in the Python driver, with one sequence."""

    def __init__(self, folder: Path, threads: int, context: int = CONTEXT) -> None:
        generator = Generator(folder, target=Target(threads=threads))
        self.vocab_size = generator.config.vocab_size
        self._state = generator.sequences(1, min(context, generator.config.max_position_embeddings))

    def start(self, batch: int) -> None:  # noqa: ARG002
        """Start with an empty sequence."""
        self._state.reset(0)

    def prefill(self, ids: np.ndarray) -> None:
        """Prefill a prompt."""
        self._state.prefill(0, ids)

    def decode(self, token: int) -> None:
        """Append a token to the sequence."""
        self._state.decode([token])


def main() -> None:
    """Answer each line of JSON with a line of JSON."""
    driver = Driver(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(driver, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
