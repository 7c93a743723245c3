"""`python -m benchmarks.formats`: what each format of the experts costs in quality, and saves in bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

from molkv_export.export import export
from molkv_export.parity.validate import ROUNDED, TRAINED, validate
from molkv_runtime.row_formats import RowDtype

CHECKPOINT = Path("examples/stdlib-mini")

_COLUMNS = (
    "`--experts-dtype`",
    "bytes per token",
    "store",
    "perplexity",
    "against the trained model",
    "mean KL",
    "p99 KL",
    "max KL",
    "top-1",
    "max abs logit against rounded records",
)


def main() -> None:
    """Print a row for each format."""
    print(f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in get_args(RowDtype):
            bundle = Path(folder) / dtype
            manifest = export(CHECKPOINT, bundle, experts_dtype=dtype)
            report = validate(bundle, CHECKPOINT)
            trained = next(c.metrics for c in report.comparisons if c.reference == TRAINED)
            worst = max(c.metrics.max_abs for c in report.comparisons if c.reference == ROUNDED)
            store = sum(manifest.files[shard.file].size for shard in manifest.store.shards)
            assert trained.perplexity is not None
            cells = (
                dtype,
                f"{manifest.store.stride:,}",
                f"{store / 1024**2:.1f} MiB",
                f"{trained.perplexity.candidate:.3f}",
                f"x {trained.perplexity.ratio:.6f} ± {trained.perplexity.ratio_error:.0e}",
                f"{trained.kl_mean:.1e}",
                f"{trained.kl_p99:.1e}",
                f"{trained.kl_max:.1e}",
                f"{trained.top1_agreement:.2%}",
                f"{worst:.1e}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


main()
