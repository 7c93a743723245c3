"""The positions where a bundle is furthest from its reference, with their text and what both would say next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from molkv_bundle import Floats
from molkv_export.parity.metrics import Doubles, log_softmax, top_ids
from molkv_export.parity.phases import Ids

_KEPT = 8
_SHOWN_TOKENS = 24
_TOP = 5


class Candidate(msgspec.Struct, frozen=True):
    """A token that could follow."""

    text: str
    probability: float


class WorstPosition(msgspec.Struct, frozen=True):
    """One position."""

    sequence: int
    position: int
    kl: float
    before: str  # the text up to the position
    follows: str  # the token that really follows; empty at the end of the text
    reference: list[Candidate]  # the likeliest, likeliest first
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
    """Keeps the logits of a few positions."""

    def __init__(self) -> None:
        self._heap: list[_Found] = []

    def add(self, sequence: int, ids: Ids, reference: Floats, candidate: Floats, kl: Doubles) -> None:
        """Look at all positions of a text [T] with logits [T, vocab_size] and divergences [T]."""
        kl = np.where(np.isnan(kl), np.inf, kl)  # the worst of all
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
        """Give them, the worst first; `decode` turns token ids into text."""

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
