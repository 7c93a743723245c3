"""Metrics match their definitions, and gates reject models that differ."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import msgspec
import numpy as np
import pytest

from molkv_bundle import DenseDtype, RowDtype
from molkv_export.golden import top_ids
from molkv_export.parity.gates import QUALITY_GATES, loosest, quality_failure, rounding_failure
from molkv_export.parity.metrics import Metrics, MetricsAccumulator

RANDOM = np.random.default_rng(0)
REFERENCE = RANDOM.normal(size=(150, 11)).astype(np.float32)
CANDIDATE = REFERENCE + RANDOM.normal(size=(150, 11)).astype(np.float32) * np.float32(0.3)
FLOAT16 = QUALITY_GATES["float32", "float16"]
NEXT = RANDOM.integers(0, 11, 149)


def _metrics() -> Metrics:
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE[:70], CANDIDATE[:70], NEXT[:70])
    accumulator.add(REFERENCE[70:], CANDIDATE[70:], NEXT[70:])
    return accumulator.result()


def test_metrics_match_their_definitions() -> None:
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
    assert found.kl_p99 == pytest.approx(
        sorted(kl)[147] * 0.49 + sorted(kl)[148] * 0.51
    )  # of 150, linear interpolation
    five = [len(set(np.argsort(-x)[:5]) & set(np.argsort(-y)[:5])) / 5 for x, y in zip(p, q, strict=True)]
    assert 0 < found.top5_agreement < 1
    assert found.top5_agreement == pytest.approx(np.mean(five))


def test_perplexities_come_with_standard_errors() -> None:
    found = _metrics().perplexity
    assert found is not None
    logs = []
    for logits in (REFERENCE, CANDIDATE):
        p = [np.exp(row) / np.exp(row).sum() for row in logits.astype(float)]
        logs.append(np.array([math.log(p[i][token]) for i, token in enumerate(NEXT)]))
    for value, error, values in (
        (found.reference, found.reference_error, logs[0]),
        (found.candidate, found.candidate_error, logs[1]),
        (found.ratio, found.ratio_error, logs[1] - logs[0]),
    ):
        assert value == pytest.approx(math.exp(-np.mean(values)))
        # The change of the perplexity if the mean changes by its standard error.
        assert error == pytest.approx(value * np.std(values) / math.sqrt(149))
    assert found.ratio_error / found.ratio < found.reference_error / found.reference


def test_only_known_logits_of_a_partial_reference_are_compared() -> None:
    known = np.argsort(-REFERENCE, axis=-1, kind="stable")[:, :6]
    partial = np.full_like(REFERENCE, -np.inf)
    np.put_along_axis(partial, known, np.take_along_axis(REFERENCE, known, axis=-1), axis=-1)
    accumulator = MetricsAccumulator(is_partial=True)
    each = accumulator.add(partial, CANDIDATE, NEXT)
    found, whole = accumulator.result(), _metrics()
    kl, differences = [], []
    for ids, x, y in zip(known, REFERENCE.astype(float), CANDIDATE.astype(float), strict=True):
        p, q = (np.exp(row[ids]) / np.exp(row[ids]).sum() for row in (x, y))
        kl.append(sum(p * np.log(p / q)))
        differences.append(x[ids] - y[ids])
    assert each == pytest.approx(kl)
    assert found.kl_mean == pytest.approx(np.mean(kl))
    assert found.max_abs == pytest.approx(np.abs(differences).max())
    assert found.relative_l2 == pytest.approx(
        np.linalg.norm(differences) / np.linalg.norm(np.take_along_axis(REFERENCE, known, axis=-1))
    )
    # The candidate's likeliest tokens may be tokens that the reference does not know.
    assert (found.top1_agreement, found.top5_agreement) == (whole.top1_agreement, whole.top5_agreement)
    assert found.perplexity is None


def test_top_ids_are_the_likeliest_in_order() -> None:
    assert top_ids(REFERENCE, 4).tolist() == [np.argsort(-row)[:4].tolist() for row in REFERENCE]
    assert top_ids(REFERENCE, 99).shape == REFERENCE.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_logit_that_is_not_finite_fails_both_gates(bad: float) -> None:
    candidate = REFERENCE.copy()
    candidate[100, 3] = bad
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE, candidate, NEXT)
    assert rounding_failure(accumulator.result(), 1e-4)
    assert quality_failure(accumulator.result(), FLOAT16)


def test_gates_accept_equal_models_and_reject_others() -> None:
    accumulator = MetricsAccumulator()
    accumulator.add(REFERENCE, REFERENCE, NEXT)
    equal = accumulator.result()
    assert rounding_failure(equal, 1e-4) == quality_failure(equal, QUALITY_GATES["float32", "float32"]) == ""
    assert equal.perplexity is not None
    worse = msgspec.structs.replace(equal.perplexity, ratio=1.01)
    for change, failure in {
        "max abs 0.00011 is above": {"max_abs": 1.1e-4},
        "mean KL 0.001 is above": {"kl_mean": 1e-3},
        "p99 of KL 0.01 is above": {"kl_p99": 1e-2},
        "top-1 agreement 99.00% is below 99.5%": {"top1_agreement": 0.99},
        "perplexity is 1.010000 times the reference's": {"perplexity": worse},
        "perplexity is nan times": {"perplexity": None},
    }.items():
        broken = msgspec.structs.replace(equal, **failure)
        assert (rounding_failure(broken, 1e-4) or quality_failure(broken, FLOAT16)).startswith(change)


@pytest.mark.parametrize("dtypes", list(itertools.product(get_args(DenseDtype), get_args(RowDtype))))
def test_there_is_a_gate_for_every_combination_of_dtypes(dtypes: tuple[DenseDtype, RowDtype]) -> None:
    gate = QUALITY_GATES[dtypes]
    assert 0 < gate.kl_mean < gate.kl_p99
    assert loosest(gate, QUALITY_GATES["int4", "int4"]) == QUALITY_GATES["int4", "int4"]
