"""Compare records of the store, including records that no text reads, and compare greedy text."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from molkv_bundle import record_dtype
from molkv_export.modeling import ExactRecords
from molkv_export.parity.runners import Runner
from molkv_export.source.model import Ids, SourceModel
from molkv_export.source.rounding import StoredRows
from molkv_runtime import Generator, Sampling, Store

_CHUNK_BYTES = 128 * 1024 * 1024  # bytes of exact records at a time; all expert networks are loaded once for each chunk

_BATCH = 4


class RecordsResult(msgspec.Struct, frozen=True):
    """Result of comparing records."""

    records: int  # number of compared records
    of: int  # number of records in the store
    failure: str  # description of the first field that differs by more than rounding; empty if there is none


def records_agreement(store: Store, source: SourceModel, at_most: int = 0) -> RecordsResult:
    """Compare all fields of records with the source model.

    `source/rounding.py` defines the stored values that count as equal to an exact value.

    Args:
        store: Expert store of the bundle.
        source: Model that the bundle was made from.
        at_most: Number of records to compare, spread evenly over the vocabulary; 0 means all.
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
                return RecordsResult(len(ids), total, f"{name} of token id {token} differs from the source")
    return RecordsResult(len(ids), total, "")


def _agreement(exact: ExactRecords, stored: StoredRows) -> Iterator[tuple[str, Tensor]]:
    yield "embedding", stored.embedding(exact.embedding)[1]
    for index, (layer, rows) in enumerate(exact.layers.items()):
        for name, row in rows.items():
            yield f"expert_{name}.{layer}", stored.vector(index, name, row)[1]


class GreedyResult(msgspec.Struct, frozen=True):
    """Result of comparing greedy continuations with one reference."""

    reference: str
    continuations: int
    tokens_each: int
    identical: int
    mean_length: float  # mean number of tokens before the first difference
    ties: int  # number of tokens that differ but count as equal, see `Continuation.compare`
    first_difference: str  # position and tokens of the first difference; empty if all texts are identical


class Continuation:
    """A prompt and the tokens that the bundle generates after it."""

    def __init__(self, prompt: Ids, new_ids: Ids) -> None:
        self.prompt, self.new_ids = prompt, new_ids

    def compare(self, reference: Runner, tie: float) -> tuple[int, int, str]:
        """Compare every token with the reference, which reads prompt and continuation in one pass.

        If the reference's likeliest token equals the bundle's token at every position, then by induction the reference
        would have generated the same text. A token whose logit is within `tie` of the largest logit also counts as
        equal.

        Returns:
            The number of tokens before the first difference, the number of ties among them, and a description of the
            difference (empty if there is none).
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
        return length, ties, f"bundle {ours}, reference {theirs} (logits of the reference differ by {gaps[length]:.2g})"


def continuations(generator: Generator, prompts: list[Ids], new_tokens: int) -> list[Continuation]:
    """Continue prompts of different lengths with the bundle, in batches."""
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
    """Compare continuations with the greedy choices of a reference; logits within `tie` count as equal."""
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
