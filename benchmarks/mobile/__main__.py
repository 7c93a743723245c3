"""`python -m benchmarks.mobile`: export, lint, parity and step time of static profiles (tables for docs/mobile.md).

The models are stdlib-mini, and a model of the size of MoLE-160M with random weights. The second model needs 12 GiB of
disk under demo/. Before the benchmark, run `make test-openvino` and `make test-qnn`: they create the environments for
OpenVINO and QNN.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec
import numpy as np

from benchmarks.exporting import export_measured
from benchmarks.mobile.first_text import largest_difference
from benchmarks.store.model import model_config, write_checkpoint
from molkv_bundle import Bundle, DenseDtype, ProviderError
from molkv_export.graph.files import load_graphs
from molkv_export.lint import Compiler, lint, official_check, optimized_graph
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_runtime import Generator, resolve

_VARIANTS: list[tuple[Compiler, DenseDtype]] = [
    ("coreml", "float32"),
    ("coreml", "float16"),
    ("nnapi", "float32"),
    ("nnapi", "qdq-int8"),
]
_EMULATOR = ["htp_arch=75", "soc_model=57"]
_ELSEWHERE = [("openvino", []), ("qnn", _EMULATOR)]
_STEPS, _RUNS = 24, 5


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo/bench-mobile"), show_default=True)
@click.option("--qnn-minutes", type=int, default=10, show_default=True, help="Time limit for a graph in QNN.")
@click.option("--only", type=click.Choice(["stdlib-mini", "160M"]), help="Run only this model.")
def main(folder: Path, qnn_minutes: int, only: str | None) -> None:
    """Print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = {"stdlib-mini": Path("examples/stdlib-mini"), "160M": folder / "160M-checkpoint"}
    for name, checkpoint in checkpoints.items():
        if only not in (None, name):
            continue
        if not checkpoint.exists():
            write_checkpoint(msgspec.structs.replace(model_config(1), vocab_size=50_304), checkpoint)
        print(f"\n## {name}\n\n| | seconds | peak RSS, MiB | added, MB |\n|---|---|---|---|")
        bundle = folder / name
        _export(checkpoint, bundle, "cpu", "float32")
        rows, ratios = [], []
        for profile, dtype in _VARIANTS:
            _export(checkpoint, bundle, profile, dtype)
            rows.append(_row(bundle, profile, dtype, 60 * qnn_minutes))
            if (profile, dtype) == ("coreml", "float32"):  # the graph of nnapi differs only in GELU
                ratios += _ratios(bundle, profile)
        print(
            "\n| graph | calls of 1 and 32: nodes taken by our rules, partitions | ONNX Runtime's checker | CPU "
            f"| onnx.reference | OpenVINO | QNN's emulator |\n|{'---|' * 7}"
        )
        print("\n".join(rows), flush=True)
        print("\nTime of static graphs / time of the dynamic graph, on the CPU provider: " + "; ".join(ratios))


def _export(checkpoint: Path, bundle: Path, profile: str, dtype: str) -> None:
    """Make a bundle, or add a profile to it, in a separate process. Print time, memory and added bytes."""
    before = sum(path.stat().st_size for path in bundle.iterdir()) if bundle.exists() else 0
    way = ["--profile", profile] if profile == "cpu" else ["--add-profile", profile]
    cost = export_measured(checkpoint, bundle, *way, "--dense-dtype", dtype)
    info = Bundle(bundle, profile=profile).graph()
    files = [info.data, info.golden, *(file.file for file in info.files)]
    added = sum((bundle / name).stat().st_size for name in files) if before else _size(bundle)
    print(f"| {profile}, {dtype} | {cost.seconds:.1f} | {cost.peak_mib:.0f} | {added / 1e6:.1f} |", flush=True)


def _size(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.iterdir())


def _row(folder: Path, profile: Compiler, dtype: DenseDtype, patience: int) -> str:
    bundle = Bundle(folder, profile=profile)
    ours, theirs = [], []
    for file in bundle.graph().files:
        found = lint(optimized_graph(folder / file.file, ["MatMulAddFusion"]), profile)
        ours.append(f"{found.accepted}/{found.nodes}, {found.partitions}")
        checked = official_check(folder / file.file, profile)
        theirs.append(f"{checked.accepted}/{checked.nodes}, {checked.partitions}, {checked.verdict}")
    differences = [largest_difference(Generator(bundle))[0]]
    reference = ReferenceGraph(load_graphs(bundle), bundle.path)
    differences.append(largest_difference(Generator(bundle, graph=reference))[0])
    cells = [f"{difference:.1e}" for difference in differences]
    cells += [_elsewhere(folder, profile, provider, options, patience) for provider, options in _ELSEWHERE]
    return f"| {profile}, {dtype} | {'; '.join(ours)} | {'; '.join(theirs)} | {' | '.join(cells)} |"


def _elsewhere(folder: Path, profile: str, provider: str, options: list[str], patience: int) -> str:
    try:
        resolve(provider)
    except ProviderError:
        return "-"
    command = [sys.executable, "-m", "benchmarks.mobile.first_text", str(folder), profile, provider, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        return f"more than {patience // 60} min"
    if done.returncode:
        return f"fails: {done.stderr.strip().splitlines()[-1][:120]}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return f"{found['difference']:.1e}, {found['placed']}"


def _ratios(folder: Path, profile: str) -> list[str]:
    """Compare decode steps and prefills of a profile with those of profile cpu, in turns; return ratios as texts."""
    generators = [Generator(folder, profile=name) for name in (profile, "cpu")]
    vocab, context = generators[0].config.vocab_size, generators[0].config.max_position_embeddings
    ids = np.random.default_rng(0).integers(0, vocab, context)
    said = []
    for at in (context // 8, context - _STEPS):
        states = [generator.sequences(max_length=context) for generator in generators]
        times: list[list[float]] = [[], []]
        prefills: list[list[float]] = [[], []]
        for _ in range(_RUNS):
            for index, state in enumerate(states):
                state.lengths[:] = 0
                start = time.perf_counter()
                state.prefill(0, ids[:at])
                prefills[index].append(time.perf_counter() - start)
                for token in ids[at : at + _STEPS]:
                    start = time.perf_counter()
                    state.decode(np.array([token]))
                    times[index].append(time.perf_counter() - start)
        step, prefill = (
            statistics.median(one[0][len(one[0]) // _RUNS :]) / statistics.median(one[1][len(one[1]) // _RUNS :])
            for one in (times, prefills)
        )
        said.append(f"at {at} of {context} tokens: step {step:.2f}, prefill of these tokens {prefill:.2f}")
    return said


main()
