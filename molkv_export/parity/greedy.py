"""Greedy continuations: does the bundle write the very text that the source model would write?"""

from __future__ import annotations

import msgspec
import numpy as np

from molkv_export.parity.phases import Ids
from molkv_export.parity.reference import SourceModel
from molkv_runtime.generator import Generator

_BATCH = 4


class GreedyResult(msgspec.Struct, frozen=True):
    """Agreement of greedy continuations."""

    continuations: int
    tokens_each: int
    identical: int
    first_difference: str  # where and what, empty if all are identical


def greedy_agreement(generator: Generator, reference: SourceModel, prompts: list[Ids], new_tokens: int) -> GreedyResult:
    """Continue prompts with the bundle, in batches, and check every token against the source model.

    The source model reads prompt and continuation once: if its likeliest token is the bundle's at every position, then
    by induction it would have written the same text.
    """
    identical, first_difference = 0, ""
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        written: list[list[int]] = [[] for _ in batch]
        stream = generator.stream([ids.tolist() for ids in batch], max_new_tokens=new_tokens, stop_ids=frozenset())
        for token in stream:
            written[token.sequence].append(token.id)
        for index, (ids, ours) in enumerate(zip(batch, written, strict=True), start=start):
            continuation = np.array(ours)
            text = np.concatenate([ids, continuation])[:-1]
            logits = reference.logits(text, generator.store)[len(ids) - 1 :]
            wrong = np.flatnonzero(logits.argmax(axis=-1) != continuation)
            if not len(wrong):
                identical += 1
            elif not first_difference:
                at = int(wrong[0])
                gap = float(logits[at].max() - logits[at, continuation[at]])
                first_difference = (
                    f"continuation {index}, token {at}: bundle {ours[at]}, source {int(logits[at].argmax())} "
                    f"(their logits differ by {gap:.2g} in the source)"
                )
    return GreedyResult(len(prompts), new_tokens, identical, first_difference)
