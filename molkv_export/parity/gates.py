"""Gates: limits that a bundle must keep to pass a validation. docs/parity.md, "The gates", gives the reasons."""

from __future__ import annotations

import msgspec
import numpy as np

from molkv_bundle import Bundle, DenseDtype, KVDtype, RowDtype, WindowDtype, read_golden
from molkv_export.parity.metrics import Metrics
from molkv_export.source.arithmetic import DRAWS, limits_of, rough_arithmetic
from molkv_export.source.model import Ids, SourceModel
from molkv_runtime import PRESETS, Generator


class QualityGate(msgspec.Struct, frozen=True):
    """Largest allowed loss of quality by rounding, in a comparison with the trained model on real text."""

    kl_mean: float  # nats per position, at most
    kl_p99: float  # nats, at most
    perplexity_ratio: float  # bundle / source, at most
    top1_agreement: float  # share of positions, at least


_OF_RECORDS: dict[RowDtype, QualityGate] = {
    "float32": QualityGate(kl_mean=1e-8, kl_p99=1e-7, perplexity_ratio=1.00001, top1_agreement=0.999),
    "float16": QualityGate(kl_mean=1e-6, kl_p99=1e-5, perplexity_ratio=1.0001, top1_agreement=0.995),
    "int8": QualityGate(kl_mean=1e-4, kl_p99=1e-3, perplexity_ratio=1.001, top1_agreement=0.98),
    "int4": QualityGate(kl_mean=2e-2, kl_p99=1e-1, perplexity_ratio=1.03, top1_agreement=0.9),
    "nf4": QualityGate(kl_mean=2e-2, kl_p99=1e-1, perplexity_ratio=1.03, top1_agreement=0.9),
}
_OF_WEIGHTS: dict[DenseDtype, QualityGate] = {
    "float32": _OF_RECORDS["float32"],
    "float16": _OF_RECORDS["float16"],
    "int8": QualityGate(kl_mean=3e-3, kl_p99=2e-2, perplexity_ratio=1.005, top1_agreement=0.95),
    "int4": QualityGate(kl_mean=6e-2, kl_p99=3e-1, perplexity_ratio=1.04, top1_agreement=0.85),
    "qdq-int8": QualityGate(kl_mean=1e-2, kl_p99=1e-1, perplexity_ratio=1.02, top1_agreement=0.9),
}


def loosest(*gates: QualityGate) -> QualityGate:
    """Return a gate with the loosest limit of each kind. A limit applies to the sum of the errors from all causes."""
    return QualityGate(
        kl_mean=max(gate.kl_mean for gate in gates),
        kl_p99=max(gate.kl_p99 for gate in gates),
        perplexity_ratio=max(gate.perplexity_ratio for gate in gates),
        top1_agreement=min(gate.top1_agreement for gate in gates),
    )


_OF_CACHE: dict[KVDtype, QualityGate] = {
    "float32": _OF_RECORDS["float32"],
    "float16": QualityGate(kl_mean=1e-5, kl_p99=1e-4, perplexity_ratio=1.0005, top1_agreement=0.99),
    "int8": _OF_WEIGHTS["int8"],
}
_OF_WINDOW: dict[WindowDtype, QualityGate] = {"float32": _OF_RECORDS["float32"], "int8": _OF_WEIGHTS["int8"]}

# The loss by rounding weights and records together is only a little more than the larger one of the two losses. The
# limits are large enough for this difference.
QUALITY_GATES = {
    (dense, rows): loosest(of_weights, of_records)
    for dense, of_weights in _OF_WEIGHTS.items()
    for rows, of_records in _OF_RECORDS.items()
}

# Largest allowed loss by the dtype in which a file stores the expected logits.
FILE_GATES: dict[str, QualityGate] = {
    "F32": _OF_RECORDS["float32"],
    "F16": QualityGate(kl_mean=1e-5, kl_p99=1e-4, perplexity_ratio=1.0005, top1_agreement=0.99),
    "BF16": QualityGate(kl_mean=4e-4, kl_p99=2e-3, perplexity_ratio=1.002, top1_agreement=0.97),
}
# Allowed error of a logit by the arithmetic of the user's own code, in addition to the error of our arithmetic, if
# nothing is rounded. For example, rotation angles computed in float32 change logits by 2e-4 at position 2,048.
OWN_CODE_MAX_ABS = 1e-3


def quality_gate(bundle: Bundle) -> QualityGate:
    """Return the gate for the dtypes of a bundle."""
    graph = bundle.graph()
    of_weights_and_records = QUALITY_GATES[graph.dense_dtype, bundle.manifest.experts.dtype]
    return loosest(of_weights_and_records, _OF_CACHE[graph.kv_dtype], _OF_WINDOW[graph.window_dtype])


def rounding_limit(model: SourceModel, generator: Generator, texts: list[Ids], provider: str) -> float:
    """Return the largest allowed difference of a logit from the source model, rounded as in the bundle.

    The limit is measured: the source model runs the texts with rounding errors as large as the bundle's format allows
    (docs/parity.md). The limit is larger for a provider that computes with fewer bits than float32.
    """
    bundle, largest = generator.bundle, 0.0
    for ids in texts:
        exact = model.logits(ids, generator.store)
        for draw in range(DRAWS):
            with rough_arithmetic(model.model, bundle, draw):
                largest = max(largest, float(np.abs(model.logits(ids, generator.store) - exact).max()))
    return limits_of(largest, 0.0).max_abs + _own(provider)


def golden_limit(bundle: Bundle, provider: str) -> float:
    """Return the largest allowed difference of a logit, as measured at export for the golden vectors."""
    return read_golden(bundle).limits.max_abs + _own(provider)


def _own(provider: str) -> float:
    return PRESETS[provider].max_abs if provider in PRESETS else 0.0


def rounding_failure(metrics: Metrics, limit: float) -> str:
    """Return why a comparison with the rounded source fails, or "" if it passes."""
    if not metrics.max_abs <= limit:  # `not <=`, so that NaN fails
        return f"max abs {metrics.max_abs:.3g} is above {limit:.3g}"
    return ""


def quality_failure(metrics: Metrics, gate: QualityGate) -> str:
    """Return why a comparison with the source as trained fails, or "" if it passes."""
    return kl_failure(metrics, gate) or top1_failure(metrics, gate) or _perplexity_failure(metrics, gate)


def kl_failure(metrics: Metrics, gate: QualityGate) -> str:
    """Return why the KL divergence fails, or "" if it passes."""
    if not metrics.kl_mean <= gate.kl_mean:
        return f"mean KL {metrics.kl_mean:.3g} is above {gate.kl_mean:g}"
    if not metrics.kl_p99 <= gate.kl_p99:
        return f"p99 of KL {metrics.kl_p99:.3g} is above {gate.kl_p99:g}"
    return ""


def top1_failure(metrics: Metrics, gate: QualityGate) -> str:
    """Return why the share of positions with the same likeliest token fails, or "" if it passes."""
    if not metrics.top1_agreement >= gate.top1_agreement:
        return f"top-1 agreement {metrics.top1_agreement:.2%} is below {gate.top1_agreement:.1%}"
    return ""


def _perplexity_failure(metrics: Metrics, gate: QualityGate) -> str:
    ratio = metrics.perplexity.ratio if metrics.perplexity else float("nan")
    if not ratio <= gate.perplexity_ratio:
        return f"perplexity is {ratio:.6f} times the reference's, above {gate.perplexity_ratio:g}"
    return ""
