"""`make bench-native`: print the tables of docs/performance.md, "The native driver"."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import onnxruntime

from benchmarks.sessions.models import make_bundles
from benchmarks.speed import CONTEXT
from benchmarks.speed.contest import Task, contest
from benchmarks.store.model import model_config
from molkv_bundle import Bundle, DenseDtype
from molkv_export import GraphOptions, export
from molkv_export.commands.options import PATH
from molkv_runtime import cache_bytes, window_bytes

CHECKPOINT = Path("examples/stdlib-mini")
DTYPES: tuple[DenseDtype, ...] = ("float32", "int8", "int4")
MINI, LARGE = "stdlib-mini", "160M class"
LIBRARY = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime.so.{onnxruntime.__version__}"
IDS = "5,6,7,8"  # a prompt
PYTHON = (sys.executable, "-m", "benchmarks.native.python_process")

# Lengths of the context at the last decode step, and of prompts.
TASKS = {
    MINI: (Task("decode", 400), Task("prefill", 384)),
    LARGE: (Task("decode", 512), Task("prefill", 512)),
}


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 7 GB.")
@click.option("--build", type=PATH, required=True, help="Folder with the built driver.")
@click.option("--runs", default=15, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", default=2, show_default=True, help="Threads of ONNX Runtime for the 160M class.")
def main(folder: Path, build: Path, runs: int, threads: int) -> None:
    """Measure decode, prefill, memory and the time to the first token, native and Python in turns."""
    bundles = _bundles(folder)
    click.echo(f"{threads} threads (stdlib-mini: 1 thread), medians of {runs} runs in turns")
    click.echo(f"\n**Speed**\n\n{_speeds(bundles, build, runs, threads)}")
    click.echo(f"\n**Memory**\n\n{_memory(bundles, build, threads)}")
    click.echo(f"\n**Time from the start of the process to the first token**\n\n{_first_tokens(bundles, build, runs)}")
    click.echo(f"\n**Greedy tokens that are equal to those of the Python driver**\n\n{_equal_tokens(bundles, build)}")


def _bundles(folder: Path) -> dict[tuple[str, DenseDtype], Path]:
    """Write the bundles that do not exist yet. Return their folders by model and dtype."""
    config = msgspec.structs.replace(model_config(1), vocab_size=50_304)
    large = make_bundles(config, folder)
    bundles = {(LARGE, dtype): large[dtype] for dtype in DTYPES}
    for dtype in DTYPES:
        bundles[MINI, dtype] = folder / f"stdlib-mini-{dtype}"
        if not bundles[MINI, dtype].exists():
            export(CHECKPOINT, bundles[MINI, dtype], graph=GraphOptions(dtype))
    return dict(sorted(bundles.items(), reverse=True))


def _speeds(bundles: dict[tuple[str, DenseDtype], Path], build: Path, runs: int, threads: int) -> str:
    lines = ["| | | native, tokens/s | Python, tokens/s | native / Python |", "|---|---|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        commands = _commands(bundle, build, 1 if model == MINI else threads)
        tasks = {task: tuple(commands) for task in TASKS[model]}
        found = contest(commands, tasks, runs)
        for task in tasks:
            native, python = found["native", task], found["python", task]
            tokens = task.length if task.what == "prefill" else 1
            speeds = [f"{tokens / result.median:,.0f}" for result in (native, python)]
            name = f"{task.what}, {task.length} tokens"
            lines.append(f"| {model}, {dtype} | {name} | {' | '.join(speeds)} | {native.ratio(python):.2f} |")
    return "\n".join(lines)


def _commands(bundle: Path, build: Path, threads: int) -> dict[str, Sequence[str | Path]]:
    return {
        "native": (build / "contender", LIBRARY, bundle, str(threads)),
        "python": (*PYTHON, bundle, str(threads)),
    }


def _memory(bundles: dict[tuple[str, DenseDtype], Path], build: Path, threads: int) -> str:
    """Compare the peak RSS of new processes that decode at a context of 512 tokens (stdlib-mini: 400)."""
    lines = [
        "| | dense weights | KV cache | window | native: other RAM | Python: other RAM |",
        "|---|---|---|---|---|---|",
    ]
    for (model, dtype), path in bundles.items():
        task = TASKS[model][0]
        bundle = Bundle(path)
        weights = bundle.manifest.files[bundle.graph().data].size
        length = min(CONTEXT, bundle.config.max_position_embeddings)
        parts = [weights, cache_bytes(bundle.config, task.length), window_bytes(bundle.config, length)]
        found = contest(_commands(path, build, 1 if model == MINI else threads), {task: ("native", "python")}, 1)
        others = [found[name, task].rss - sum(parts) for name in ("native", "python")]
        cells = [f"{part / 1e6:,.1f} MB" for part in (*parts, *others)]
        lines.append(f"| {model}, {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _first_tokens(bundles: dict[tuple[str, DenseDtype], Path], build: Path, runs: int) -> str:
    lines = ["| | native, s | Python, s | Python / native |", "|---|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        commands = [_run(tool, bundle, build, 1) for tool in ("native", "python")]
        times: list[list[float]] = [[], []]
        for _ in range(runs + 1):
            for place, command in enumerate(commands):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[place].append(time.perf_counter() - start)
        native, python = (statistics.median(each[1:]) for each in times)
        ratio = statistics.median(b / a for a, b in zip(times[0][1:], times[1][1:], strict=True))
        lines.append(f"| {model}, {dtype} | {native:.3f} | {python:.3f} | {ratio:.1f} |")
    return "\n".join(lines)


def _run(tool: str, bundle: Path, build: Path, count: int) -> list[str]:
    """Return a command that continues token ids, since the models of random weights have no tokenizer."""
    if tool == "python":
        return [sys.executable, "-m", "benchmarks.native.python_run", str(bundle), IDS, str(count)]
    options = ("--prompt-ids", IDS, "--max-new-tokens", count, "--temperature", 0, "--json", "--onnxruntime", LIBRARY)
    return [str(part) for part in (build / "molkv", "run", bundle, *options)]


def _equal_tokens(bundles: dict[tuple[str, DenseDtype], Path], build: Path) -> str:
    lines = ["| | tokens | equal, up to the first difference |", "|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        found = []
        for tool in ("native", "python"):
            done = subprocess.run(_run(tool, bundle, build, 256), check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1])["tokens"])
        native, python = found
        equal = next((n for n, (a, b) in enumerate(zip(native, python, strict=False)) if a != b), len(python))
        lines.append(f"| {model}, {dtype} | {len(python)} | {equal} |")
    return "\n".join(lines)


main()
