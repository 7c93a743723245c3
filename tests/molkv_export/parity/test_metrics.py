"""The metrics against their definitions, and the gates against what they must not let through."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from molkv_export.parity.gates import quality_failure, rounding_failure
from molkv_export.parity.metrics import Metrics, MetricsAccumulator

RANDOM = np.random.default_rng(0)
REFERENCE = RANDOM.normal(size=(150, 11)).astype(np.float32)
CANDIDATE = REFERENCE + RANDOM.normal(size=(150, 11)).astype(np.float32) * np.float32(0.3)
NEXT = RANDOM.integers(0, 11, 149)


def _metrics() -> Metrics:
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE[:70], CANDIDATE[:70], NEXT[:70])
    accumulator.add(REFERENCE[70:], CANDIDATE[70:], NEXT[70:])
    return accumulator.result()


def test_metrics_are_what_their_names_say() -> None:
    found = _metrics()
    p = [np.exp(row) / np.exp(row).sum() for row in REFERENCE.astype(float)]
    q = [np.exp(row) / np.exp(row).sum() for row in CANDIDATE.astype(float)]
    kl = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    assert found.positions == 150
    assert found.max_abs == pytest.approx(max(abs(a - b) for a, b in zip(REFERENCE.flat, CANDIDATE.flat, strict=True)))
    assert found.relative_l2 == pytest.approx(np.linalg.norm(CANDIDATE - REFERENCE) / np.linalg.norm(REFERENCE))
    assert found.kl_mean == pytest.approx(np.mean(kl))
    assert found.kl_max == pytest.approx(max(kl))
    same = [x.argmax() == y.argmax() for x, y in zip(p, q, strict=True)]
    assert 0 < found.top1_agreement < 1
    assert found.top1_agreement == pytest.approx(np.mean(same))
    for perplexity, probabilities in ((found.perplexity_reference, p), (found.perplexity_candidate, q)):
        logs = [math.log(probabilities[i][token]) for i, token in enumerate(NEXT)]
        assert perplexity == pytest.approx(math.exp(-np.mean(logs)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_single_logit_that_is_not_finite_fails_both_gates(bad: float) -> None:
    candidate = REFERENCE.copy()
    candidate[100, 3] = bad
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE, candidate, NEXT)
    assert rounding_failure(accumulator.result())
    assert quality_failure(accumulator.result(), "float16")


def test_gates_let_equal_models_pass_and_no_others() -> None:
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE, REFERENCE, NEXT)
    equal = accumulator.result()
    assert rounding_failure(equal) == quality_failure(equal, "float32") == ""
    assert rounding_failure(msgspec.structs.replace(equal, max_abs=1.1e-4)).startswith("max abs 0.00011 is above")
    assert quality_failure(msgspec.structs.replace(equal, kl_mean=1e-3), "float16").startswith("mean KL 0.001 is")
    worse = msgspec.structs.replace(equal, perplexity_candidate=equal.perplexity_reference * 1.01)
    assert quality_failure(worse, "float16").startswith("perplexity is 1.010000 times the source's")
