"""`python -m benchmarks.mole`: a MoLE with the published 160M-4E shape, exported from both published forms.

The results are in docs/checkpoints.md. The folder needs 20 GiB. If the checkpoints exist, they are used again. Bundles
are always exported again.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.exporting import export_measured
from benchmarks.mole.published import VOCAB, write_floor, write_table, write_training
from molkv_bundle import Bundle
from molkv_export import validate
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.validate import ROUNDED
from molkv_runtime import ExpertStore, Generator, Sampling, Sequences

_DTYPES = ("float32", "int8", "int4")
_PROMPTS, _CONTEXTS, _STEPS, _RUNS = (256, 1024), (128, 512, 1024), 32, 5
_TEXTS, _NEW_TOKENS = 8, 64
_SCOPE = Scope(sequences=2, continuations=4, new_tokens=32, records=4096)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo/bench-mole"), show_default=True)
def main(folder: Path) -> None:
    """Print the tables of docs/checkpoints.md."""
    training, table, floor = (folder / name for name in ("training", "table", "floor"))
    if not training.exists():
        write_training(training)
    for path, write in ((table, write_table), (floor, write_floor)):
        if not path.exists():
            write(training, path)
    print("| bundle | export, s | peak RSS, MiB | GB |\n|---|---|---|---|")
    for source, dtype in ((training, "float32"), *((table, dtype) for dtype in _DTYPES)):
        _export(source, dtype)
    for dtype in _DTYPES:
        _export(floor, dtype)
    _compare_stores(*(_bundle(source, "float32") for source in (training, table)))
    _compare_tokens(*(_bundle(source, "float32") for source in (training, table)))
    for source in (training, table):
        _parity(_bundle(source, "float32"), source)
    print("\n| tok/s, and the ratio to the dense floor |" + "".join(f" prefill {n} |" for n in _PROMPTS), end="")
    print("".join(f" decode at {n} |" for n in _CONTEXTS) + f"\n|{'---|' * (1 + len(_PROMPTS) + len(_CONTEXTS))}")
    for dtype in _DTYPES:
        _speed(dtype, {name: _bundle(source, dtype) for name, source in (("MoLE", table), ("floor", floor))})


def _bundle(source: Path, dtype: str) -> Path:
    return source.with_name(f"{source.name}-{dtype}.bundle")


def _export(source: Path, dtype: str) -> None:
    bundle = _bundle(source, dtype)
    cost = export_measured(source, bundle, "--dense-dtype", dtype)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    print(f"| {bundle.stem} | {cost.seconds:.1f} | {cost.peak_mib:.0f} | {size / 1e9:.2f} |", flush=True)


def _compare_stores(first: Path, second: Path) -> None:
    """Print the number of values that differ between two stores, whose tables different programs computed."""
    different, largest, total = 0, 0.0, 0
    with ExpertStore(Bundle(first)) as ours, ExpertStore(Bundle(second)) as theirs:
        for start in range(0, VOCAB, 1024):
            ids = np.arange(start, min(VOCAB, start + 1024))
            a, b = (store.gather(ids)["layers"]["value"].astype(np.float32) for store in (ours, theirs))
            different, total = different + int((a != b).sum()), total + a.size
            largest = max(largest, float(np.abs(a - b).max()))
    print(f"\nstores: {different} of {total} values differ ({different / total:.1e}), by {largest:.1e} at most")


def _compare_tokens(*bundles: Path) -> None:
    prompts = np.random.default_rng(1).integers(0, VOCAB, (_TEXTS, 16)).tolist()
    texts = [
        [
            token.id
            for token in Generator(bundle).stream(
                prompts, max_new_tokens=_NEW_TOKENS, sampling=Sampling(), stop_ids=frozenset()
            )
        ]
        for bundle in bundles
    ]
    same = sum(a == b for a, b in zip(*texts, strict=True))
    print(f"greedy tokens of {_TEXTS} prompts from both stores: {same} of {len(texts[0])} identical", flush=True)


def _parity(bundle: Path, source: Path) -> None:
    report = validate(bundle, source, scope=_SCOPE)
    for phase in report.comparisons:
        if phase.reference == ROUNDED:
            print(f"{bundle.stem}, {phase.phase}: max abs {phase.metrics.max_abs:.1e}")
    failures = [failure for failure in report.failures if f"({ROUNDED})" in failure or "records" in failure]
    print(f"{bundle.stem}: {failures or 'PASS, as stored'}", flush=True)


def _speed(dtype: str, bundles: dict[str, Path]) -> None:
    """Measure both bundles in turns in this process; print medians without the first run."""
    ids = np.random.default_rng(0).integers(0, VOCAB, max(*_PROMPTS, *_CONTEXTS))
    states = [Generator(bundle).sequences(max_length=len(ids)) for bundle in bundles.values()]
    rates: list[list[float]] = [[] for _ in states]
    for measure, lengths in ((_prefill, _PROMPTS), (_decode, _CONTEXTS)):
        for length in lengths:
            times = [[measure(state, ids[:length]) for state in states] for _ in range(_RUNS + 1)][1:]
            for rate, found in zip(rates, zip(*times, strict=True), strict=True):
                rate.append(1 / statistics.median(found))
    for name, row in zip(bundles, rates, strict=True):
        cells = [f"{rate:.0f}, {rate / floor:.2f}" for rate, floor in zip(row, rates[-1], strict=True)]
        print(f"| {name}, {dtype} | {' | '.join(cells)} |", flush=True)


def _prefill(state: Sequences, ids: np.ndarray) -> float:
    """Prefill a prompt, and return the seconds per token."""
    state.lengths[:] = 0
    start = time.perf_counter()
    state.prefill(0, ids)
    return (time.perf_counter() - start) / len(ids)


def _decode(state: Sequences, ids: np.ndarray) -> float:
    """Decode the last tokens of a context one by one, and return the median seconds per token."""
    state.lengths[:] = 0
    state.prefill(0, ids[:-_STEPS])
    times = []
    for token in ids[-_STEPS:]:
        start = time.perf_counter()
        state.decode(np.array([token]))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


main()
