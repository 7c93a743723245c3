"""What must agree exactly: every record of the store, also those that no text reads, and greedy text."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from molkv_bundle import record_dtype
from molkv_export.golden import Ids
from molkv_export.modeling import ExactRecords
from molkv_export.parity.runners import Runner
from molkv_export.source.model import SourceModel
from molkv_export.source.rounding import StoredRows
from molkv_runtime import Generator, Sampling, Store

_CHUNK_BYTES = 128 * 1024 * 1024  # of exact records; a chunk loads all expert networks once

_BATCH = 4


class RecordsResult(msgspec.Struct, frozen=True):
    """Agreement of all records."""

    records: int  # that were compared
    of: int  # that there are
    failure: str  # the first field that differs by more than rounding; empty: none


def records_agreement(store: Store, source: SourceModel, at_most: int = 0) -> RecordsResult:
    """Compare every field of records with the source model's.

    What counts as agreement is said in `rounding`.

    Args:
        store: The bundle's.
        source: What it was made from.
        at_most: How many records, spread evenly over the vocabulary; 0 is all.
    """
    total = store.vocab_size
    ids = np.arange(total) if not at_most else np.unique(np.linspace(0, total - 1, at_most).astype(np.int64))
    count = max(1, _CHUNK_BYTES // record_dtype(source.config, "float32").itemsize)
    for start in range(0, len(ids), count):
        chunk = ids[start : start + count]
        exact = source.exact_records(torch.from_numpy(chunk))
        for name, agrees in _agreement(exact, source.stored_rows(store, chunk)):
            if not agrees.all():
                token = int(chunk[int(agrees.int().argmin())])
                return RecordsResult(len(ids), total, f"{name} of token id {token} is not the source's")
    return RecordsResult(len(ids), total, "")


def _agreement(exact: ExactRecords, stored: StoredRows) -> Iterator[tuple[str, Tensor]]:
    yield "embedding", stored.embedding(exact.embedding)[1]
    for index, (layer, rows) in enumerate(exact.layers.items()):
        for name, row in rows.items():
            yield f"expert_{name}.{layer}", stored.vector(index, name, row)[1]


class GreedyResult(msgspec.Struct, frozen=True):
    """Agreement of greedy continuations with one reference's."""

    reference: str
    continuations: int
    tokens_each: int
    identical: int
    mean_length: float  # tokens of a continuation up to the first that is different
    ties: int  # tokens that only rounding decided, see `Continuation.compare`
    first_difference: str  # where and what, empty if all are identical


class Continuation:
    """A prompt, and what the bundle writes behind it."""

    def __init__(self, prompt: Ids, new_ids: Ids) -> None:
        self.prompt, self.new_ids = prompt, new_ids

    def compare(self, reference: Runner, tie: float) -> tuple[int, int, str]:
        """Check every token against the reference, which reads prompt and continuation once.

        If its likeliest token is the bundle's at every position, then by induction it would have written the same text.
        Where its likeliest tokens are within `tie` of each other, either is right.

        Returns:
            Tokens up to the first that is different, ties among them, and what the difference is.
        """
        text = np.concatenate([self.prompt, self.new_ids])[:-1]
        logits = reference.logits(text, last=len(self.new_ids))
        gaps = logits.max(axis=-1) - logits[np.arange(len(logits)), self.new_ids]
        wrong = np.flatnonzero(~(gaps <= tie))
        length = int(wrong[0]) if len(wrong) else len(gaps)
        ties = int((gaps[:length] > 0).sum())
        if not len(wrong):
            return length, ties, ""
        ours, theirs = int(self.new_ids[length]), int(logits[length].argmax())
        return length, ties, f"bundle {ours}, reference {theirs} (there their logits differ by {gaps[length]:.2g})"


def continuations(generator: Generator, prompts: list[Ids], new_tokens: int) -> list[Continuation]:
    """Continue prompts of different length with the bundle, in batches."""
    found = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        written: list[list[int]] = [[] for _ in batch]
        stream = generator.stream(
            [ids.tolist() for ids in batch], max_new_tokens=new_tokens, sampling=Sampling(), stop_ids=frozenset()
        )
        for token in stream:
            written[token.sequence].append(token.id)
        found += [Continuation(ids, np.array(ours)) for ids, ours in zip(batch, written, strict=True)]
    return found


def greedy_agreement(written: list[Continuation], name: str, reference: Runner, tie: float) -> GreedyResult:
    """Compare continuations with what the reference of this name would have written; logits within `tie` are equal."""
    compared = [continuation.compare(reference, tie) for continuation in written]
    differences = [
        f"continuation {index}, token {length}: {difference}"
        for index, (length, _, difference) in enumerate(compared)
        if difference
    ]
    return GreedyResult(
        reference=name,
        continuations=len(written),
        tokens_each=len(written[0].new_ids),
        identical=len(written) - len(differences),
        mean_length=float(np.mean([length for length, _, _ in compared])),
        ties=sum(ties for _, ties, _ in compared),
        first_difference=differences[0] if differences else "",
    )
