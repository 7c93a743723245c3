"""onnxruntime-genai as a contender, in a separate environment. Orders and answers are as in `process.py`."""

# The imports are not installed in the environment in which mypy runs.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

STEPS = 48  # these three are those of `benchmarks/speed/__init__.py`
CONTEXT = 1024
WARM_UP = 64


def main() -> None:
    """Answer each line of JSON with a line of JSON. Arguments: MODEL_FOLDER THREADS."""
    folder, threads = sys.argv[1:]
    path = Path(folder) / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = int(threads)
    path.write_text(json.dumps(config))
    model = og.Model(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        run(model, order["what"], WARM_UP)
        seconds = run(model, order["what"], order["length"])
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(json.dumps({"seconds": seconds, "rss": 1024 * int(status["VmHWM"].split()[0])}), flush=True)


def run(model: og.Model, what: str, length: int) -> float:
    """Return the seconds of a prefill, or the median seconds of a decode step."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
    generator = og.Generator(model, params)
    ids = np.random.default_rng(0).integers(3, 50_304, length).astype(np.int32)
    if what == "prefill":
        start = time.perf_counter()
        generator.append_tokens(ids[: min(length, CONTEXT - 1)])
        generator.get_logits()
        return time.perf_counter() - start
    generator.append_tokens(ids[: length - STEPS])
    generator.generate_next_token()
    times = []
    for _ in range(STEPS - 2):
        start = time.perf_counter()
        generator.generate_next_token()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
