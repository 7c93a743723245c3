"""Sampling keeps what it should keep, and draws as often as it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from molkv_bundle import RequestError
from molkv_runtime import Sampling
from molkv_runtime.generator import greedy

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))


def test_greedy_takes_the_likeliest_token() -> None:
    assert greedy(LOGITS) == 1
    assert Sampling().sampler()(LOGITS) == 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.05, 0.4, 0.3, 0.2, 0.05]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.69), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.71), [0, 4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=1.0, top_p=1e-9), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_k=99), [0.05, 0.4, 0.3, 0.2, 0.05]),
        (Sampling(temperature=1e-320), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0.5), np.square([0.05, 0.4, 0.3, 0.2, 0.05]) / 0.295),
    ],
)
def test_probabilities(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(sampling.probabilities(LOGITS), expected, rtol=1e-5)


def test_draws_follow_the_probabilities() -> None:
    draw = Sampling(temperature=1.0, seed=3).sampler()
    counts = np.bincount([draw(LOGITS) for _ in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(counts, [0.05, 0.4, 0.3, 0.2, 0.05], atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "0.5"},
        {"temperature": 10**400},
        {"temperature": None},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": None},
        {"seed": -1},
        {"seed": None},
        {"seed": 1.0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(options))} is .* expected"):
        Sampling(**options)
