"""Greedy text is compared token by token; only ties may differ."""

from __future__ import annotations

import numpy as np

from molkv_bundle import Floats
from molkv_export.golden import Ids
from molkv_export.parity.agreement import Continuation, greedy_agreement

PROMPT = np.array([3, 1, 4])
TIE = 2e-4


class Counting:
    """Runner that predicts the next number after each token. The logit of `second` is lower by `gap`."""

    def __init__(self, second: int = 0, gap: float = 5.0) -> None:
        self._second, self._gap = second, gap

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        logits = np.zeros((len(ids), 10), np.float32)
        logits[np.arange(len(ids)), (ids + 1) % 10] = 7.0
        logits[:, self._second] = np.maximum(logits[:, self._second], 7.0 - self._gap)
        return logits[-last:]


def test_the_same_text_is_identical() -> None:
    result = greedy_agreement([Continuation(PROMPT, np.array([5, 6, 7, 8]))], "counting", Counting(), TIE)
    assert (result.identical, result.mean_length, result.ties, result.first_difference) == (1, 4.0, 0, "")


def test_the_first_difference_is_named_and_ends_the_comparison() -> None:
    written = [Continuation(PROMPT, np.array([5, 6, 7, 8])), Continuation(PROMPT, np.array([5, 6, 2, 3]))]
    result = greedy_agreement(written, "counting", Counting(), TIE)
    assert (result.identical, result.mean_length) == (1, 3.0)
    assert result.first_difference == (
        "continuation 1, token 2: bundle 2, reference 7 (logits of the reference differ by 7)"
    )


def test_both_tokens_of_a_tie_within_rounding_are_accepted() -> None:
    written = [Continuation(PROMPT, np.array([5, 6, 2, 3]))]
    tie = greedy_agreement(written, "counting", Counting(second=2, gap=TIE / 2), TIE)
    assert (tie.identical, tie.ties) == (1, 1)
    no_tie = greedy_agreement(written, "counting", Counting(second=2, gap=2 * TIE), TIE)
    assert (no_tie.identical, no_tie.mean_length) == (0, 2.0)


def test_nan_is_not_a_tie() -> None:
    class Broken(Counting):
        def logits(self, ids: Ids, last: int = 0) -> Floats:
            return super().logits(ids, last) * np.float32(np.nan)

    result = greedy_agreement([Continuation(PROMPT, np.array([5]))], "broken", Broken(), TIE)
    assert result.identical == 0
