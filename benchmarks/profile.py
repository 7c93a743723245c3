"""`python -m benchmarks.profile BUNDLE [--prompt 1024]`: the time of each operator in a decode step, or in a prefill.

The times come from ONNX Runtime's profiler. The profiler adds some microseconds to each operator, so the times of small
operators are too large.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from molkv_bundle import Arrays, Bundle
from molkv_export.commands.options import PATH
from molkv_runtime import BoundCall, Generator, Target, session_options

_STEPS = 64
_CONTEXT = 512
_PARTS = {
    "expert_mixer": "experts",
    "self_attn": "attention",
    "mlp": "feed-forward",
    "lm_head": "LM head",
    "norm": "norms",
}


class _ProfiledGraph:
    """A bundle's graph that runs with ONNX Runtime's profiler."""

    def __init__(self, bundle: Bundle, folder: str) -> None:
        options = session_options(Target(threads=os.cpu_count()))
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        self._session = onnxruntime.InferenceSession(str(bundle.file(bundle.graph().files[0].file)), options)

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> BoundCall:  # noqa: ARG002
        return BoundCall(self._session, inputs, outputs)

    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text())
        return found


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--prompt", type=int, help="Profile the prefill of this number of tokens instead of decode steps.")
def main(bundle: Path, prompt: int | None) -> None:
    """Print the microseconds of each part of the model and of each operator."""
    opened = Bundle(bundle)
    ids = np.random.default_rng(0).integers(0, opened.config.vocab_size, 2048)
    with tempfile.TemporaryDirectory() as folder:
        graph = _ProfiledGraph(opened, folder)
        state = Generator(opened, graph=graph).sequences(1, max(_CONTEXT, prompt or 0))
        if prompt is None:
            state.prefill(0, ids[: _CONTEXT - _STEPS])
            for token in ids[_CONTEXT - _STEPS : _CONTEXT]:
                state.decode([token])
        else:
            state.prefill(0, ids[:prompt])
        events = graph.events()
    steps = 1 if prompt else _STEPS
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    start = 0 if prompt else runs[-steps]  # excludes the prefill before the decode steps
    times: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["ts"] >= start and event["name"].endswith("_kernel_time"):
            times[_part(event["name"]), event["args"]["op_name"]] += event["dur"]
    print("| part | operator | us |\n|---|---|---|")
    for (part, operator), spent in times.most_common(25):
        print(f"| {part} | {operator} | {spent / steps:.0f} |")
    print("\n| part | us |\n|---|---|")
    for title in dict.fromkeys(part for part, _ in times):
        print(f"| {title} | {sum(spent for (part, _), spent in times.items() if part == title) / steps:.0f} |")


def _part(name: str) -> str:
    return next((title for key, title in _PARTS.items() if re.search(key, name)), "the rest")


main()
