"""Continue token ids with the Python driver: `python -m benchmarks.drivers.python_run BUNDLE IDS COUNT`."""

from __future__ import annotations

import json
import sys

from molkv_runtime import Generator, Sampling


def main() -> None:
    """Print the ids of the new tokens as JSON."""
    bundle, ids, count = sys.argv[1:]
    prompt = [int(part) for part in ids.split(",")]
    tokens = Generator(bundle).stream([prompt], max_new_tokens=int(count), sampling=Sampling(), stop_ids=())
    print(json.dumps({"tokens": [token.id for token in tokens]}))


if __name__ == "__main__":
    main()
