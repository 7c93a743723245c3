"""Every record of the store against the source model, also those that no text happens to read."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from molkv_export.modeling import Records
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.rounding import StoredRows
from molkv_runtime.store import ExpertStore

_CHUNK_BYTES = 16 * 1024 * 1024


class RecordsResult(msgspec.Struct, frozen=True):
    """Agreement of all records."""

    records: int
    failure: str  # the first field that differs by more than rounding; empty: none


@torch.no_grad()
def records_agreement(store: ExpertStore, source: SourceModel) -> RecordsResult:
    """Compare every field of every record with the source model's.

    What counts as agreement is said in `rounding`.
    """
    count = max(1, _CHUNK_BYTES // store.record_dtype.itemsize)
    for start in range(0, store.vocab_size, count):
        ids = np.arange(start, min(store.vocab_size, start + count))
        exact = source.records(torch.from_numpy(ids))
        for name, agrees in _agreement(exact, StoredRows(store.gather(ids), store.value_dtype)):
            if not agrees.all():
                token = int(ids[int(agrees.int().argmin())])
                return RecordsResult(store.vocab_size, f"{name} of token id {token} is not the source's")
    return RecordsResult(store.vocab_size, "")


def _agreement(exact: Records, stored: StoredRows) -> Iterator[tuple[str, Tensor]]:
    yield "embedding", stored.embedding(exact.embedding)[1]
    for index, (layer, rows) in enumerate(exact.experts.items()):
        if rows.key is not None:
            yield f"expert_key.{layer}", stored.key(index, rows.key)[1]
        yield f"expert_value.{layer}", stored.value(index, rows.value)[1]
