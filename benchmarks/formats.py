"""`python -m benchmarks.formats`: the loss of quality by each format of experts, dense weights and KV cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

from molkv_bundle import DenseDtype, RowDtype, WindowDtype
from molkv_export import GraphOptions, export, validate
from molkv_export.graph.choices import BLOCK_SIZES
from molkv_export.parity.validate import ROUNDED, TRAINED

CHECKPOINT = Path("examples/stdlib-mini")

_QUALITY = (
    "perplexity",
    "against the trained model",
    "mean KL",
    "p99 KL",
    "max KL",
    "top-1",
    "max abs logit, as stored",
)


def main() -> None:
    """Print tables for the formats of experts, of dense weights and KV cache, and of the expert window."""
    experts = [(dtype, {"experts_dtype": dtype}) for dtype in get_args(RowDtype)]
    _table(("`--experts-dtype`", "bytes per token", "store"), experts)
    dense: list[tuple[str, dict[str, Any]]] = [
        (dtype, {"graph": GraphOptions(dtype)}) for dtype in ("float32", "float16", "int8")
    ]
    dense += [(f"int4, blocks of {size}", {"graph": GraphOptions("int4", size)}) for size in BLOCK_SIZES]
    dense += [
        (f"int4, blocks of {size}, LM head int4", {"graph": GraphOptions("int4", size, lm_head_dtype="int4")})
        for size in (32, 128)
    ]
    dense += [("float32, KV cache int8", {"graph": GraphOptions(kv_dtype="int8")})]
    dense += [("float32, expert window int8", {"graph": GraphOptions(window_dtype="int8")})]
    print()
    _table(("`--dense-dtype`", "bytes per token", "dense weights"), dense)
    print()
    _table(("store, weights, window", "bytes per token", "dense weights"), _windows())


def _windows() -> Iterator[tuple[str, dict[str, Any]]]:
    stores: tuple[RowDtype, ...] = ("int8", "float16")
    weights: tuple[DenseDtype, ...] = ("int8", "int4", "float32")
    for store, dense, window in product(stores, weights, get_args(WindowDtype)):
        graph = GraphOptions(dense, window_dtype=window)
        yield f"{store}, {dense}, {window}", {"experts_dtype": store, "graph": graph}


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
    names = (*columns, *_QUALITY)
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for title, options in rows:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(_cells(title, columns[-1], Path(folder) / 'bundle', options))} |", flush=True)


def _cells(title: str, part: str, bundle: Path, options: dict[str, Any]) -> tuple[str, ...]:
    manifest = export(CHECKPOINT, bundle, **options)
    report = validate(bundle, CHECKPOINT)
    trained = next(c.metrics for c in report.comparisons if c.reference == TRAINED)
    worst = max(c.metrics.max_abs for c in report.comparisons if c.reference == ROUNDED)
    names = [shard.file for shard in manifest.experts.shards] if part == "store" else [manifest.graphs["cpu"].data]
    size = sum(manifest.files[name].size for name in names)
    assert trained.perplexity is not None
    return (
        title,
        f"{manifest.experts.stride:,}",
        f"{size / 1024**2:.1f} MiB",
        f"{trained.perplexity.candidate:.3f}",
        f"x {trained.perplexity.ratio:.6f} ± {trained.perplexity.ratio_error:.0e}",
        f"{trained.kl_mean:.1e}",
        f"{trained.kl_p99:.1e}",
        f"{trained.kl_max:.1e}",
        f"{trained.top1_agreement:.2%}",
        f"{worst:.1e}",
    )


main()
