"""How far two runtimes' logits are apart."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_runtime.rope import Floats


class Metrics(msgspec.Struct, frozen=True):
    """Agreement over a number of positions."""

    positions: int
    max_abs: float  # largest difference of two logits
    relative_l2: float  # ||candidate - reference|| / ||reference||
    kl_mean: float  # KL(reference || candidate), nats per position
    kl_max: float
    top1_agreement: float  # share of positions with the same likeliest token
    perplexity_reference: float  # NaN where the texts' next tokens were not compared
    perplexity_candidate: float


_ROWS_AT_A_TIME = 64  # bounds the memory of the float64 copies


class MetricsAccumulator:
    """Sums up differences over sequences, holding none of them."""

    def __init__(self) -> None:
        self._positions = self._targets = self._same_top = 0
        self._max_abs = self._difference = self._norm = 0.0
        self._kl_sum = self._kl_max = 0.0
        self._nll = np.zeros(2)

    def add(self, reference: Floats, candidate: Floats, next_ids: npt.NDArray[np.int64] | None = None) -> None:
        """Compare logits [n, vocab_size]; next_ids [<= n] are the tokens that really follow, for perplexity."""
        for start in range(0, len(reference), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            self._add(reference[rows], candidate[rows], None if next_ids is None else next_ids[rows])

    def _add(self, reference: Floats, candidate: Floats, next_ids: npt.NDArray[np.int64] | None) -> None:
        exact, found = reference.astype(np.float64), candidate.astype(np.float64)
        difference = found - exact
        # A NaN anywhere must not vanish in a maximum.
        self._max_abs = float(np.max([self._max_abs, np.abs(difference).max()]))
        self._difference += float(np.square(difference).sum())
        self._norm += float(np.square(exact).sum())
        log_exact, log_found = _log_softmax(exact), _log_softmax(found)
        kl = (np.exp(log_exact) * (log_exact - log_found)).sum(axis=-1)
        self._kl_sum += float(kl.sum())
        self._kl_max = float(np.max([self._kl_max, kl.max()]))
        self._same_top += int((exact.argmax(axis=-1) == found.argmax(axis=-1)).sum())
        self._positions += len(exact)
        if next_ids is not None:
            rows = np.arange(len(next_ids))
            self._nll -= [log_exact[rows, next_ids].sum(), log_found[rows, next_ids].sum()]
            self._targets += len(next_ids)

    def result(self) -> Metrics:
        """Give the metrics over all that was added."""
        perplexities = np.exp(self._nll / self._targets) if self._targets else np.full(2, np.nan)
        return Metrics(
            positions=self._positions,
            max_abs=self._max_abs,
            relative_l2=(self._difference / self._norm) ** 0.5,
            kl_mean=self._kl_sum / self._positions,
            kl_max=self._kl_max,
            top1_agreement=self._same_top / self._positions,
            perplexity_reference=float(perplexities[0]),
            perplexity_candidate=float(perplexities[1]),
        )


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
