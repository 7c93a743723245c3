"""The tables that compare a driver with the Python driver: speed, memory, time to the first token, equal tokens."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import onnxruntime

from benchmarks.sessions.models import make_bundles
from benchmarks.speed import CONTEXT
from benchmarks.speed.contest import Command, Task, contest
from benchmarks.store.model import model_config
from molkv_bundle import Bundle, DenseDtype
from molkv_export import GraphOptions, export
from molkv_runtime import cache_bytes, window_bytes

LIBRARY = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime.so.{onnxruntime.__version__}"
CHECKPOINT = Path("examples/stdlib-mini")
DTYPES: tuple[DenseDtype, ...] = ("float32", "int8", "int4")
MINI, LARGE = "stdlib-mini", "160M class"
IDS = "5,6,7,8"  # a prompt

# Lengths of the context at the last decode step, and of prompts.
TASKS = {
    MINI: (Task("decode", 400), Task("prefill", 384)),
    LARGE: (Task("decode", 512), Task("prefill", 512)),
}


class Contender(NamedTuple):
    """A driver, as commands."""

    name: str
    process: Callable[[Path, int], Command]
    """The command for a bundle and a number of threads. It answers each line of JSON (`benchmarks.speed.process`)."""
    run: Callable[[Path, str, int], Command]
    """The command that continues the ids of a prompt by a number of greedy tokens. Its last line is JSON."""


PYTHON = Contender(
    "Python",
    lambda bundle, threads: (sys.executable, "-m", "benchmarks.drivers.python_process", bundle, str(threads)),
    lambda bundle, ids, count: (sys.executable, "-m", "benchmarks.drivers.python_run", bundle, ids, str(count)),
)


def compare(driver: Contender, folder: Path, runs: int, threads: int) -> None:
    """Measure decode, prefill, memory and the time to the first token, the driver and Python in turns.

    Args:
        driver: The driver that is compared with the Python driver.
        folder: Folder for the models, which need 7 GB.
        runs: Number of runs of each measurement.
        threads: Threads of ONNX Runtime for the 160M class.
    """
    bundles = _bundles(folder)
    click.echo(f"{threads} threads (stdlib-mini: 1 thread), medians of {runs} runs in turns")
    click.echo(f"\n**Speed**\n\n{_speeds(bundles, driver, runs, threads)}")
    click.echo(f"\n**Memory**\n\n{_memory(bundles, driver, threads)}")
    click.echo(f"\n**Time from the start of the process to the first token**\n\n{_first_tokens(bundles, driver, runs)}")
    click.echo(f"\n**Greedy tokens that are equal to those of the Python driver**\n\n{_equal_tokens(bundles, driver)}")


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


def _speeds(bundles: dict[tuple[str, DenseDtype], Path], driver: Contender, runs: int, threads: int) -> str:
    name = driver.name
    lines = [f"| | | {name}, tokens/s | Python, tokens/s | {name} / Python |", "|---|---|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        commands = _commands(bundle, driver, 1 if model == MINI else threads)
        tasks = {task: tuple(commands) for task in TASKS[model]}
        found = contest(commands, tasks, runs)
        for task in tasks:
            own, python = found[name, task], found[PYTHON.name, task]
            tokens = task.length if task.what == "prefill" else 1
            speeds = [f"{tokens / result.median:,.0f}" for result in (own, python)]
            what = f"{task.what}, {task.length} tokens"
            lines.append(f"| {model}, {dtype} | {what} | {' | '.join(speeds)} | {own.ratio(python).median:.2f} |")
    return "\n".join(lines)


def _commands(bundle: Path, driver: Contender, threads: int) -> dict[str, Command]:
    return {each.name: each.process(bundle, threads) for each in (driver, PYTHON)}


def _memory(bundles: dict[tuple[str, DenseDtype], Path], driver: Contender, threads: int) -> str:
    """Compare the peak RSS of new processes that decode at a context of 512 tokens (stdlib-mini: 400)."""
    lines = [
        f"| | dense weights | KV cache | window | {driver.name}: other RAM | Python: other RAM |",
        "|---|---|---|---|---|---|",
    ]
    names = (driver.name, PYTHON.name)
    for (model, dtype), path in bundles.items():
        task = TASKS[model][0]
        bundle = Bundle(path)
        weights = bundle.manifest.files[bundle.graph().data].size
        length = min(CONTEXT, bundle.config.max_position_embeddings)
        parts = [weights, cache_bytes(bundle.config, task.length), window_bytes(bundle.config, length)]
        found = contest(_commands(path, driver, 1 if model == MINI else threads), {task: names}, 1)
        others = [found[name, task].rss[-1] - sum(parts) for name in names]
        cells = [f"{part / 1e6:,.1f} MB" for part in (*parts, *others)]
        lines.append(f"| {model}, {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _first_tokens(bundles: dict[tuple[str, DenseDtype], Path], driver: Contender, runs: int) -> str:
    lines = [f"| | {driver.name}, s | Python, s | Python / {driver.name} |", "|---|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        commands = [each.run(bundle, IDS, 1) for each in (driver, PYTHON)]
        times: list[list[float]] = [[], []]
        for _ in range(runs + 1):
            for place, command in enumerate(commands):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[place].append(time.perf_counter() - start)
        own, python = (statistics.median(each[1:]) for each in times)
        ratio = statistics.median(b / a for a, b in zip(times[0][1:], times[1][1:], strict=True))
        lines.append(f"| {model}, {dtype} | {own:.3f} | {python:.3f} | {ratio:.1f} |")
    return "\n".join(lines)


def _equal_tokens(bundles: dict[tuple[str, DenseDtype], Path], driver: Contender) -> str:
    lines = ["| | tokens | equal, up to the first difference |", "|---|---|---|"]
    for (model, dtype), bundle in bundles.items():
        found = []
        for each in (driver, PYTHON):
            done = subprocess.run(each.run(bundle, IDS, 256), check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1])["tokens"])
        own, python = found
        equal = next((n for n, (a, b) in enumerate(zip(own, python, strict=False)) if a != b), len(python))
        lines.append(f"| {model}, {dtype} | {len(python)} | {equal} |")
    return "\n".join(lines)
