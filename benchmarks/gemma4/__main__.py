"""`make bench-gemma4`: print the tables of docs/gemma4.md, "At full size"."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import onnx
import onnxruntime

from benchmarks.drivers import LIBRARY
from benchmarks.gemma4.checkpoint import SIZES, write_checkpoint
from benchmarks.speed.contest import Command, Task, contest
from benchmarks.store.drive import drive_benchmark
from molkv_bundle import Bundle
from molkv_export.commands.options import PATH
from molkv_export.terminal import human_bytes
from molkv_runtime import cache_bytes

_CONTEXT = 4096
_TASKS = (Task("prefill", 512), Task("decode", 512), Task("decode", _CONTEXT))


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 13 GB (E4B: 24 GB).")
@click.option("--build", type=PATH, required=True, help="Folder with the built native driver.")
@click.option("--size", type=click.Choice(list(SIZES)), default="E2B", show_default=True, help="Size of the model.")
@click.option("--runs", default=5, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", default=2, show_default=True, help="Threads of ONNX Runtime.")
def main(folder: Path, build: Path, size: str, runs: int, threads: int) -> None:
    """Measure a model with the shapes of Gemma 4 and random weights, exported as int4."""
    checkpoint = write_checkpoint(size, folder / size)
    bundle = folder / f"{size}-int4.bundle"
    click.echo(f"{os.cpu_count()} cores, {threads} threads, ONNX Runtime {onnxruntime.__version__}\n")
    _export(checkpoint, bundle)
    _run_bench(bundle, runs, threads)
    click.echo(f"\n{drive_benchmark(bundle, runs)}")
    click.echo(f"\n{_drivers(bundle, build, runs, threads)}")


def _export(checkpoint: Path, bundle: Path) -> None:
    """Export the model, and print the cost and the sizes."""
    options = ("--dense-dtype", "int4", "--experts-dtype", "int4", "--force", "--quiet")
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "cli.py", "export", checkpoint, bundle, *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the export failed")
    seconds = time.perf_counter() - start
    opened = Bundle(bundle)
    files, graph = opened.manifest.files, opened.graph()
    store = sum(files[shard.file].size for shard in opened.manifest.experts.shards)
    nodes = len(onnx.load(bundle / graph.files[0].file, load_external_data=False).graph.node)
    rows = {
        "export": f"{seconds:.0f} s, peak RSS {human_bytes(1024 * usage.ru_maxrss)}",
        "dense graph": f"{human_bytes(files[graph.data].size)}, {nodes} nodes",
        "expert store": f"{human_bytes(store)}, {opened.manifest.experts.stride:,} bytes a record",
        f"KV cache of {_CONTEXT:,} tokens": human_bytes(cache_bytes(opened.config, _CONTEXT)),
    }
    click.echo("| | |\n|---|---|")
    click.echo("\n".join(f"| {name} | {value} |" for name, value in rows.items()))


def _run_bench(bundle: Path, runs: int, threads: int) -> None:
    """Print what `molkv-export bench` prints: speed, bytes read, and the share of the memory bandwidth."""
    options = ("--prompts", "512", "--contexts", "512", "--steps", "32", "--markdown", "--quiet")
    command = (sys.executable, "cli.py", "bench", bundle, *options, "--runs", str(runs), "--threads", str(threads))
    click.echo()
    click.echo(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _drivers(bundle: Path, build: Path, runs: int, threads: int) -> str:
    """Compare the native driver with the Python driver, which take turns."""
    numbers = (str(threads), str(_CONTEXT))
    commands: dict[str, Command] = {
        "native": (build / "contender", LIBRARY, bundle, *numbers),
        "Python": (sys.executable, "-m", "benchmarks.drivers.python_process", bundle, *numbers),
    }
    found = contest(commands, {task: tuple(commands) for task in _TASKS}, runs)
    lines = ["| | native, tokens/s | Python, tokens/s | native / Python |", "|---|---|---|---|"]
    for task in _TASKS:
        native, python = found["native", task], found["Python", task]
        tokens = task.length if task.what == "prefill" else 1
        ratio = native.ratio(python).median
        lines.append(f"| {task.title} | {tokens / native.median:.1f} | {tokens / python.median:.1f} | {ratio:.2f} |")
    peaks = [human_bytes(int(max(found[name, task].rss[-1] for task in _TASKS))) for name in commands]
    lines.append(f"| peak RSS of a session of {_CONTEXT:,} tokens | {peaks[0]} | {peaks[1]} | |")
    return "\n".join(lines)


main()
