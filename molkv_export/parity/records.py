"""Every record of the store against the source model, also those that no text happens to read."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from molkv_bundle import record_dtype
from molkv_export.modeling import ExactRecords
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.rounding import StoredRows
from molkv_runtime import Store

_CHUNK_BYTES = 128 * 1024 * 1024  # of exact records; a chunk loads all expert networks once


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
