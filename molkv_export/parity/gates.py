"""What a bundle must reach to count as the model that was trained."""

from __future__ import annotations

from typing import NamedTuple

from molkv_export.parity.metrics import Metrics
from molkv_runtime.row_formats import RowDtype

# Against the source model with its records rounded as the bundle stores them, nothing but float32 rounding may be left.
MAX_ABS_ROUNDING = 1e-4


class QualityGate(NamedTuple):
    """What rounding the records may cost against the model as it was trained."""

    kl_mean: float  # nats per position
    perplexity_ratio: float  # bundle / source


# float32 stores exactly what was trained. For float16, see "The gates" in docs/architecture.md.
QUALITY_GATES: dict[RowDtype, QualityGate] = {
    "float32": QualityGate(kl_mean=1e-8, perplexity_ratio=1.00001),
    "float16": QualityGate(kl_mean=1e-6, perplexity_ratio=1.0001),
    "int8": QualityGate(kl_mean=1e-4, perplexity_ratio=1.001),
    "int4": QualityGate(kl_mean=2e-2, perplexity_ratio=1.03),
    "nf4": QualityGate(kl_mean=2e-2, perplexity_ratio=1.03),
}


def rounding_failure(metrics: Metrics) -> str:
    """Say why a comparison with the rounded source fails; empty if it passes."""
    if not metrics.max_abs <= MAX_ABS_ROUNDING:  # written so that NaN fails
        return f"max abs {metrics.max_abs:.3g} is above {MAX_ABS_ROUNDING:g}"
    return ""


def quality_failure(metrics: Metrics, dtype: RowDtype) -> str:
    """Say why a comparison with the source as it was trained fails; empty if it passes."""
    gate = QUALITY_GATES[dtype]
    ratio = metrics.perplexity_candidate / metrics.perplexity_reference
    if not metrics.kl_mean <= gate.kl_mean:
        return f"mean KL {metrics.kl_mean:.3g} is above {gate.kl_mean:g}"
    if not ratio <= gate.perplexity_ratio:
        return f"perplexity is {ratio:.6f} times the source's, above {gate.perplexity_ratio:g}"
    return ""
