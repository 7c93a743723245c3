"""Choosing the next token from logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from molkv_bundle import Floats, ProviderError, RequestError
from molkv_runtime.arguments import whole_number

Sampler = Callable[[Floats], int]


def greedy(logits: Floats) -> int:
    """Choose the likeliest token of logits [vocab_size].

    Raises:
        ProviderError: A logit is NaN or infinite.
    """
    _check_finite(logits)
    return int(logits.argmax())


def _check_finite(logits: Floats) -> None:
    if not np.isfinite(logits).all():
        wrong = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise ProviderError(
            f"the logit of token id {wrong} is {logits[wrong]}, expected a finite number; the weights are damaged or "
            "the provider computes wrong numbers: see `molkv-export selftest`"
        )


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; top_k 0 and top_p 1 keep every token.

    Raises:
        RequestError: A field has an impossible value.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, Real) and 0 <= self.temperature <= sys.float_info.max):
            raise RequestError(f"temperature is {self.temperature!r}, expected 0 (greedy) or more")
        whole_number("top_k", self.top_k, 0, " (off)")
        if not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise RequestError(f"top_p is {self.top_p!r}, expected more than 0 and at most 1")
        whole_number("seed", self.seed, 0)

    def sampler(self, sequence: int = 0) -> Sampler:
        """Make a sampler for one sequence; what it draws does not depend on the other sequences of a batch."""
        if self.temperature == 0:
            return greedy
        generator = np.random.default_rng([self.seed, sequence])

        def draw(logits: Floats) -> int:
            _check_finite(logits)
            return int(generator.choice(len(logits), p=self.probabilities(logits)))

        return draw

    def probabilities(self, logits: Floats) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Give the distribution [vocab_size] that is drawn from: temperature, then top-k, then top-p."""
        with np.errstate(over="ignore"):  # a tiny temperature makes all but the likeliest -inf, as it should
            scaled = (logits.astype(np.float64) - logits.max()) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        kept = np.exp(scaled[order])
        kept /= kept.sum()
        # A token stays if the ones before it do not reach top_p yet: at least one always does.
        stays = np.cumsum(kept) - kept < self.top_p
        probabilities = np.zeros(len(logits), np.float64)
        probabilities[order[stays]] = kept[stays] / kept[stays].sum()
        return probabilities
