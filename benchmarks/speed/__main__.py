"""`make bench-speed`: print the tables of docs/performance.md, "Speed", and draw its figure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from benchmarks.speed.contest import MODULE, Result, Task, contest
from benchmarks.speed.figure import Bar, draw
from benchmarks.speed.models import DTYPES, bundle, configs, make_bundles
from molkv_bundle import DenseDtype
from molkv_export.bench.machine import memory_bandwidth
from molkv_export.commands.options import PATH
from molkv_runtime import cache_bytes, window_bytes

PREFILL = Task("prefill", 1024)
DECODE = Task("decode", 512)
CONTEXTS = (DECODE, Task("decode", 128), Task("decode", 1024))
BATCH = Task("decode", 512, 8)

_HERE = Path(__file__).parent
_Results = dict[tuple[str, Task], Result]
_ByDtype = Mapping[DenseDtype, _Results]


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 35 GB.")
@click.option("--runs", default=7, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", type=int, default=os.cpu_count(), show_default=True, help="Threads of every contender.")
@click.option("--figure", type=PATH, help="PNG file for the figure.")
@click.option("--remove", is_flag=True, help="Remove the folder at the end.")
def main(folder: Path, runs: int, threads: int, figure: Path | None, remove: bool) -> None:
    """Compare the host driver with upper limits of its speed and with other runtimes."""
    make_bundles(folder)
    genai = _genai(folder / "genai")
    bandwidth = memory_bandwidth(threads)
    click.echo(f"{threads} threads; memory bandwidth {bandwidth / 1e9:.1f} GB/s before, ", nl=False)
    results = {dtype: _ours(folder, dtype, runs, threads) for dtype in DTYPES}
    others = _others(folder, genai, runs, threads)
    click.echo(f"{memory_bandwidth(threads) / 1e9:.1f} GB/s after; medians of {runs} runs in turns\n")
    for title, lines in (
        ("tokens a second", _rates(results, others)),
        ("ratios", _ratios(results, others)),
        ("memory", _memory(folder, results)),
        ("share of the memory bandwidth", _bandwidth(folder, results, bandwidth)),
    ):
        click.echo("\n".join([f"**{title}**", "", *lines, ""]))
    if figure is not None:
        draw(_bars(results, others), figure)
    if remove:
        shutil.rmtree(folder)


def _ours(folder: Path, dtype: str, runs: int, threads: int) -> _Results:
    commands = {
        name: (*MODULE, "ram" if name == "ram" else "storage", bundle(folder, model, dtype), str(threads))
        for name, model in (("dense", "dense"), ("molkv", "molkv"), ("mole", "mole"), ("ram", "molkv"))
    }
    everyone = list(commands)
    tasks: dict[Task, Sequence[str]] = {PREFILL: everyone, **dict.fromkeys(CONTEXTS, everyone), BATCH: ["molkv"]}
    return contest(commands, tasks, runs)


def _others(folder: Path, genai: Path, runs: int, threads: int) -> _Results:
    python, checkpoint = genai / "venv" / "bin" / "python", folder / "molkv-checkpoint"
    commands: dict[str, Sequence[str | Path]] = {
        "dense float32": (*MODULE, "storage", bundle(folder, "dense", "float32"), str(threads)),
        "dense int4": (*MODULE, "storage", bundle(folder, "dense", "int4"), str(threads)),
        "genai float32": (python, _HERE / "genai_process.py", genai / "fp32", str(threads)),
        "genai int4": (python, _HERE / "genai_process.py", genai / "int4", str(threads)),
        "molkv float32": (*MODULE, "storage", bundle(folder, "molkv", "float32"), str(threads)),
        "molkv int4": (*MODULE, "storage", bundle(folder, "molkv", "int4"), str(threads)),
        "eager": (*MODULE, "eager", checkpoint, str(threads)),
        "naive": (*MODULE, "naive", checkpoint, str(threads)),
    }
    return contest(commands, {PREFILL: list(commands), DECODE: list(commands)}, runs)


def _genai(folder: Path) -> Path:
    """Install onnxruntime-genai and make its models, which takes some minutes. Return the folder."""
    if not (folder / "int4" / "genai_config.json").exists():
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        requirements = _HERE / "genai-requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True, stdout=sys.stderr)
        tokenizer = _HERE.parents[1] / "examples" / "stdlib-mini" / "tokenizer.json"
        script: list[str | Path] = [python, _HERE / "genai_model.py", folder, tokenizer, "fp32", "int4"]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def _rates(results: _ByDtype, others: _Results) -> list[str]:
    lines = ["| | prefill 1,024 | decode at 128 | at 512 | at 1,024 |", "|---|---|---|---|---|"]
    for dtype, found in results.items():
        for name in ("dense", "mole", "molkv", "ram"):
            steps = [f"{1 / found[name, task].median:.1f}" for task in (CONTEXTS[1], CONTEXTS[0], CONTEXTS[2])]
            lines.append(
                f"| {_TITLES[name]}, {dtype} | {1024 / found[name, PREFILL].median:.0f} | {' | '.join(steps)} |"
            )
    for name in ("genai float32", "genai int4", "eager", "naive"):
        prefill, decode = 1024 / others[name, PREFILL].median, 1 / others[name, DECODE].median
        lines.append(f"| {_TITLES[name]} | {prefill:.0f} | | {decode:.1f} | |")
    return lines


def _ratios(results: _ByDtype, others: _Results) -> list[str]:
    lines = ["| | float32 | int8 | int4 |", "|---|---|---|---|"]

    def row(title: str, first: str, second: str, task: Task) -> None:
        ratios = [f"{results[dtype][first, task].ratio(results[dtype][second, task]):.3f}" for dtype in DTYPES]
        lines.append(f"| {title} | {' | '.join(ratios)} |")

    for task in CONTEXTS:
        row(f"decode at {task.length}, MoLKV / dense floor", "molkv", "dense", task)
    row("decode at 512, MoLKV / MoLKV, tables in RAM", "molkv", "ram", DECODE)
    row("decode at 512, MoLE / dense floor", "mole", "dense", DECODE)
    row("prefill 1,024, MoLKV / dense floor", "molkv", "dense", PREFILL)
    batch = [
        f"{8 * results[dtype]['molkv', DECODE].median / results[dtype]['molkv', BATCH].median:.2f}" for dtype in DTYPES
    ]
    lines.append(f"| 8 sequences at once / one sequence, tokens a second of all sequences | {' | '.join(batch)} |")
    for task, what in ((DECODE, "decode at 512"), (PREFILL, "prefill 1,024")):
        ratios = [
            f"{others[f'dense {dtype}', task].ratio(others[f'genai {dtype}', task]):.3f}"
            for dtype in ("float32", "int4")
        ]
        lines.append(f"| {what}, our dense floor / onnxruntime-genai | {ratios[0]} | | {ratios[1]} |")
        for rival in ("eager", "naive"):
            ratios = [
                f"{others[f'molkv {dtype}', task].ratio(others[rival, task]):.2f}" for dtype in ("float32", "int4")
            ]
            lines.append(f"| {what}, MoLKV / {_TITLES[rival]} | {ratios[0]} | | {ratios[1]} |")
    return lines


def _memory(folder: Path, results: _ByDtype) -> list[str]:
    config = configs()["molkv"]
    lines = ["| | peak RSS | dense weights | KV cache | window | the rest |", "|---|---|---|---|---|---|"]
    for dtype, found in results.items():
        parts = [_weights(folder, "molkv", dtype), cache_bytes(config, 1024), window_bytes(config, 1024)]
        peak = found["molkv", DECODE].rss
        cells = [f"{size / 1e6:.0f} MB" for size in (peak, *parts, peak - sum(parts))]
        lines.append(f"| {dtype} | {' | '.join(cells)} |")
    return lines


def _bandwidth(folder: Path, results: _ByDtype, bandwidth: float) -> list[str]:
    lines = ["| decode at 512 | float32 | int8 | int4 |", "|---|---|---|---|"]
    for name in ("dense", "molkv"):
        cells = []
        for dtype in DTYPES:
            config = configs()[name]
            least = _weights(folder, name, dtype) + cache_bytes(config, 512) + window_bytes(config, 512)
            rate = least / results[dtype][name, DECODE].median
            cells.append(f"{rate / 1e9:.1f} GB/s, {rate / bandwidth:.2f}")
        lines.append(f"| {_TITLES[name]} | {' | '.join(cells)} |")
    return lines


def _weights(folder: Path, name: str, dtype: str) -> int:
    return (bundle(folder, name, dtype) / "model.onnx.data").stat().st_size


def _bars(results: _ByDtype, others: _Results) -> list[Bar]:
    bars = [
        Bar(
            f"{_TITLES[name]}, {dtype}",
            1024 / results[dtype][name, PREFILL].median,
            1 / results[dtype][name, DECODE].median,
            ours=True,
        )
        for dtype in DTYPES
        for name in ("dense", "molkv")
    ]
    for name in ("genai float32", "genai int4", "eager", "naive"):
        bars.append(
            Bar(_TITLES[name], 1024 / others[name, PREFILL].median, 1 / others[name, DECODE].median, ours=False)
        )
    return bars


_TITLES = {
    "dense": "dense floor",
    "mole": "MoLE",
    "molkv": "MoLKV",
    "ram": "MoLKV, tables in RAM",
    "genai float32": "onnxruntime-genai, dense, float32",
    "genai int4": "onnxruntime-genai, dense, int4",
    "eager": "PyTorch eager, MoLKV, float32",
    "naive": "naive ONNX export, MoLKV, float32",
}


main()
