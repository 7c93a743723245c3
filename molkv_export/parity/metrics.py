"""Measure how much the logits of two runtimes differ, and find the positions that differ most."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_bundle import Floats
from molkv_export.golden import top_ids
from molkv_export.source.model import Ids

Doubles = npt.NDArray[np.float64]

_ROWS_AT_A_TIME = 64  # bounds the memory of the float64 copies
_KEPT = 8  # number of worst positions in a report
_SHOWN_TOKENS = 24  # number of tokens of the text before a worst position
_TOP = 5  # number of likeliest tokens that are compared and shown


class Perplexity(msgspec.Struct, frozen=True):
    """Perplexities of two runtimes on the same text, and their ratio, each with a standard error.

    Perplexity is exp of the mean negative log-likelihood of the actual next tokens. Standard errors assume that
    positions are independent. The error of the ratio is much smaller than the other two errors, because the likelihoods
    of both runtimes vary together from position to position.
    """

    reference: float
    reference_error: float
    candidate: float
    candidate_error: float
    ratio: float  # candidate / reference
    ratio_error: float


class Metrics(msgspec.Struct, frozen=True):
    """Differences of two runtimes over a number of positions."""

    positions: int
    max_abs: float  # largest absolute difference of a logit
    relative_l2: float  # ||candidate - reference|| / ||reference||
    kl_mean: float  # KL(reference || candidate), nats per position
    kl_p99: float
    kl_max: float
    top1_agreement: float  # share of positions with the same likeliest token
    top5_agreement: float  # share of the reference's five likeliest tokens that are among the candidate's five
    perplexity: Perplexity | None  # None if the next tokens were not given, or the reference is partial


class MetricsAccumulator:
    """Sum of differences over several sequences. It keeps a few numbers for each position, not the logits.

    With `is_partial`, only some logits of the reference are known, as many at each position. The other logits are -inf:

    - Differences and KL use the known logits only. KL compares the distributions over these logits, renormalized.
    - Top-1 and top-5 use all logits of the candidate.
    - There is no perplexity, because it needs all logits of the reference.
    """

    def __init__(self, *, is_partial: bool = False) -> None:
        self._is_partial = is_partial
        self._max_abs = self._difference = self._norm = 0.0
        self._kl: list[Doubles] = []
        self._same: list[Doubles] = []  # [n, 2]: top 1, top 5
        self._nll: list[Doubles] = []  # [n, 2]: reference, candidate

    def add(self, reference: Floats, candidate: Floats, next_ids: npt.NDArray[np.int64] | None = None) -> Doubles:
        """Add the logits [n, vocab_size] of n positions.

        Args:
            reference: Logits of the reference.
            candidate: Logits of the candidate.
            next_ids: Actual next tokens, [n] or fewer; needed for perplexity.

        Returns:
            KL divergence of every position, [n].
        """
        before = len(self._kl)
        for start in range(0, len(reference), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            self._add(reference[rows], candidate[rows], None if next_ids is None else next_ids[rows])
        return np.concatenate(self._kl[before:])

    def _add(self, reference: Floats, candidate: Floats, next_ids: npt.NDArray[np.int64] | None) -> None:
        exact, found = reference.astype(np.float64), candidate.astype(np.float64)
        self._same.append(_same_top(exact, found))
        if self._is_partial:
            known = exact > -np.inf
            exact, found = (logits[known].reshape(len(logits), -1) for logits in (exact, found))
        difference = found - exact
        # np.max keeps NaN; the built-in max can lose it.
        self._max_abs = float(np.max([self._max_abs, np.abs(difference).max()]))
        self._difference += float(np.square(difference).sum())
        self._norm += float(np.square(exact).sum())
        log_exact, log_found = log_softmax(exact), log_softmax(found)
        self._kl.append((np.exp(log_exact) * (log_exact - log_found)).sum(axis=-1))
        if next_ids is not None and not self._is_partial:
            rows = np.arange(len(next_ids))
            self._nll.append(-np.stack([log_exact[rows, next_ids], log_found[rows, next_ids]], axis=-1))

    @property
    def kl(self) -> Doubles:
        """KL divergence of every position added so far."""
        return np.concatenate(self._kl)

    def result(self) -> Metrics:
        """Return the metrics over all positions added so far."""
        kl, same = self.kl, np.concatenate(self._same)
        return Metrics(
            positions=len(kl),
            max_abs=self._max_abs,
            relative_l2=(self._difference / self._norm) ** 0.5 if self._norm else self._difference and float("inf"),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            top1_agreement=float(same[:, 0].mean()),
            top5_agreement=float(same[:, 1].mean()),
            perplexity=_perplexity(np.concatenate(self._nll)) if self._nll and sum(map(len, self._nll)) else None,
        )


def log_softmax(x: Doubles) -> Doubles:
    """Return the log-probabilities of logits [n, vocab_size]."""
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _same_top(exact: Doubles, found: Doubles) -> Doubles:
    first = exact.argmax(axis=-1) == found.argmax(axis=-1)
    five = (top_ids(exact, _TOP)[:, :, None] == top_ids(found, _TOP)[:, None, :]).any(axis=-1).mean(axis=-1)
    return np.stack([first, five], axis=-1).astype(np.float64)


def _perplexity(nll: Doubles) -> Perplexity:
    """Compute perplexities from negative log-likelihoods [n, 2] of reference and candidate."""

    def of(values: Doubles) -> tuple[float, float]:
        value = float(np.exp(values.mean()))
        return value, value * float(values.std()) / len(values) ** 0.5

    return Perplexity(*of(nll[:, 0]), *of(nll[:, 1]), *of(nll[:, 1] - nll[:, 0]))


class Candidate(msgspec.Struct, frozen=True):
    """A possible next token."""

    text: str
    probability: float


class WorstPosition(msgspec.Struct, frozen=True):
    """A position with a large KL divergence, and the likeliest next tokens of both runtimes."""

    sequence: int
    position: int
    kl: float
    before: str  # the text up to the position
    follows: str  # the actual next token; empty at the end of the text
    reference: list[Candidate]  # likeliest tokens, likeliest first
    candidate: list[Candidate]


class _Found(NamedTuple):
    kl: float
    sequence: int
    position: int
    before: Ids
    follows: Ids  # [1] or [0]
    reference: Floats
    candidate: Floats


class WorstPositions:
    """Collector of the positions with the largest KL divergence, with their logits."""

    def __init__(self) -> None:
        self._heap: list[_Found] = []

    def add(self, sequence: int, ids: Ids, reference: Floats, candidate: Floats, kl: Doubles) -> None:
        """Add all positions of a text [T], with logits [T, vocab_size] and divergences [T]."""
        kl = np.where(np.isnan(kl), np.inf, kl)  # NaN counts as the worst
        for position in np.argsort(-kl)[:_KEPT].tolist():
            found = _Found(
                float(kl[position]),
                sequence,
                position,
                ids[max(0, position + 1 - _SHOWN_TOKENS) : position + 1],
                ids[position + 1 : position + 2],
                reference[position].copy(),
                candidate[position].copy(),
            )
            if len(self._heap) < _KEPT:
                heapq.heappush(self._heap, found)
            elif found[:3] > self._heap[0][:3]:
                heapq.heapreplace(self._heap, found)

    def result(self, decode: Callable[[list[int]], str]) -> list[WorstPosition]:
        """Return the worst positions, worst first; `decode` turns token ids into text."""

        def candidates(logits: Floats) -> list[Candidate]:
            probabilities = np.exp(log_softmax(logits[None].astype(np.float64)))[0]
            ids = top_ids(logits[None], _TOP)[0].tolist()
            return [Candidate(decode([i]), float(probabilities[i])) for i in ids]

        return [
            WorstPosition(
                sequence=found.sequence,
                position=found.position,
                kl=found.kl,
                before=decode(found.before.tolist()),
                follows=decode(found.follows.tolist()),
                reference=candidates(found.reference),
                candidate=candidates(found.candidate),
            )
            for found in sorted(self._heap, key=lambda found: found[:3], reverse=True)
        ]
