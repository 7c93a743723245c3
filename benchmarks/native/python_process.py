"""A process with the Python driver as a contender: `python -m benchmarks.native.python_process BUNDLE THREADS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.speed.ours import Driver
from benchmarks.speed.process import answer
from molkv_bundle import Bundle


def main() -> None:
    """Answer each line of JSON with a line of JSON."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    driver, vocab_size = Driver(folder, threads, in_ram=False), Bundle(folder).config.vocab_size
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(driver, vocab_size, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
