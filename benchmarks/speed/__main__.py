"""`make bench-speed`: print the tables of docs/performance.md, "Speed", and draw its figure."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import click

from benchmarks.speed.contenders import Contenders
from benchmarks.speed.contest import Found, contest, contest_of_new_processes
from benchmarks.speed.figure import draw
from benchmarks.speed.measured import Measured
from benchmarks.speed.models import DTYPES
from benchmarks.speed.parts import OTHERS, PARTS, contestants, contests
from benchmarks.speed.tables import as_json, bars, tables
from molkv_bundle import RowDtype
from molkv_export.bench.machine import memory_bandwidth
from molkv_export.commands.options import PATH


class _Names(click.ParamType[list[str]]):
    """Names that are separated by commas, in the order of all allowed names."""

    name = "names"

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = value.split(",")
        for name in names:
            if name not in self._allowed:
                self.fail(f"found {name!r}, expected names of {', '.join(self._allowed)}, with commas", param, ctx)
        return [name for name in self._allowed if name in names]


@click.command(
    epilog="\b\nExample, to judge a change of int8 and int4 graphs:\n"
    "  --only decode,prefill --models int8,int4 --baseline demo/before --json after.json"
)
@click.option(
    "--folder",
    type=PATH,
    required=True,
    help="Folder for the models. The program first writes those that the chosen parts need: 20 GB for all parts and "
    "models, 8 GB for --models float32,int8,int4.",
)
@click.option(
    "--only",
    type=_Names(PARTS),
    default=",".join(PARTS),
    show_default="all",
    help="Parts of the benchmark. decode: at 512, 128 and 1,024 tokens; prefill: of 1,024 tokens; memory: peak of "
    "new processes; batch: 8 sequences at once. memory and batch measure only MoLKV.",
)
@click.option(
    "--models",
    type=_Names((*DTYPES, *OTHERS)),
    default=",".join((*DTYPES, *OTHERS)),
    show_default="all",
    help="Dtypes of the dense weights, in which MoLKV and the dense floor are measured; and other contenders beside "
    "these two. ram: MoLKV with tables in RAM; genai: onnxruntime-genai in float32 and int4; eager: PyTorch; naive: "
    "a graph with the tables.",
)
@click.option(
    "--experts-dtype",
    type=click.Choice(get_args(RowDtype)),
    default="float16",
    show_default=True,
    help="Dtype of the expert values in the stores. int8 halves the disk space.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with bundles that another version of molkv-export wrote: dense-DTYPE or molkv-DTYPE (with "
    "--experts-dtype int8, molkv-DTYPE-experts-int8). They are contenders, and run in the driver of this version.",
)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Rounds of each measurement.")
@click.option("--threads", type=int, default=os.cpu_count(), show_default=True, help="Threads of every contender.")
@click.option("--json", "json_file", type=PATH, help="JSON file for every measured second, medians and quartiles.")
@click.option("--figure", type=PATH, help="PNG file for the figure of prefill and decode.")
@click.option("--remove", is_flag=True, help="Remove the folder at the end.")
def main(
    folder: Path,
    only: list[str],
    models: list[str],
    experts_dtype: RowDtype,
    baseline: Path | None,
    runs: int,
    threads: int,
    json_file: Path | None,
    figure: Path | None,
    remove: bool,
) -> None:
    """Compare the host driver with upper limits of its speed and with other runtimes.

    Contenders take turns, and each row of the tables has the median of the ratios of all rounds.
    """
    dtypes = tuple(dtype for dtype in DTYPES if dtype in models)
    if not dtypes:
        expected = f"expected one or more of {', '.join(DTYPES)}"
        raise click.BadParameter(f"found only {', '.join(models)}, {expected}, too", param_hint="--models")
    if figure is not None and not {"decode", "prefill"} <= set(only):
        raise click.BadParameter(
            "expected --only with decode and prefill, which the figure shows", param_hint="--figure"
        )
    contenders = Contenders(folder, experts_dtype, threads, baseline)
    baselines = contenders.baselines()
    if baseline and not any(name.endswith(f" {dtype}") for name in baselines for dtype in dtypes):
        raise click.BadParameter(f"found no bundle such as dense-{dtypes[0]} in {baseline}", param_hint="--baseline")
    start = datetime.now(UTC)
    found, bandwidth = _run(only, dtypes, models, contenders, baselines, runs)
    measured = Measured(folder, experts_dtype, dtypes, found, bandwidth)
    rates = " before, ".join(f"{rate / 1e9:.1f} GB/s" for rate in bandwidth)
    click.echo(f"{threads} threads; memory bandwidth {rates} after; medians of {runs} runs in turns\n")
    for table in tables(measured):
        click.echo(table)
    if json_file is not None:
        command = shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])
        versions = {"python": platform.python_version(), "onnxruntime": version("onnxruntime")}
        about = {"date": start.isoformat(timespec="seconds"), "command": command, "versions": versions}
        options = {"threads": threads, "runs": runs, "experts_dtype": experts_dtype}
        json_file.write_text(json.dumps({**about, **options, **as_json(measured)}, indent=1) + "\n")
    if figure is not None:
        draw(bars(measured), figure)
    if remove:
        shutil.rmtree(folder)


def _run(
    parts: Sequence[str],
    dtypes: Sequence[str],
    others: Sequence[str],
    contenders: Contenders,
    baselines: Sequence[str],
    runs: int,
) -> tuple[dict[str, Found], tuple[float, float]]:
    """Run all contests. Return the results by contest, and the memory bandwidth before and after them."""
    plans = {part: contests(part, dtypes, others, baselines) for part in parts}
    names = {name for plan in plans.values() for tasks in plan.values() for name in contestants(tasks)}
    commands = {name: contenders.command(name) for name in sorted(names)}  # writes the models
    before = memory_bandwidth(contenders.threads)
    found: dict[str, Found] = {}
    for part, plan in plans.items():
        start = time.monotonic()
        run = contest_of_new_processes if part == "memory" else contest
        for contest_name, tasks in plan.items():
            found[contest_name] = run({name: commands[name] for name in contestants(tasks)}, tasks, runs)
        click.echo(f"{part}: {time.monotonic() - start:.0f} s", err=True)
    return found, (before, memory_bandwidth(contenders.threads))


main()
