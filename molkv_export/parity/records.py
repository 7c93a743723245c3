"""Every record of the store against the source model, also those that no text happens to read."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from molkv_export.modeling import Records
from molkv_export.parity.reference import SourceModel
from molkv_runtime.store import ExpertStore

_CHUNK_BYTES = 16 * 1024 * 1024


class RecordsResult(msgspec.Struct, frozen=True):
    """Agreement of all records."""

    records: int
    failure: str  # the first field that differs by more than rounding; empty: none


@torch.no_grad()
def records_agreement(store: ExpertStore, source: SourceModel) -> RecordsResult:
    """Compare every field of every record with the source model's.

    A stored value may be one step of its dtype beside the rounded one, since the last bits of a float32 sum depend on
    the order of its terms; it may differ by no more.
    """
    count = max(1, _CHUNK_BYTES // store.dtype.itemsize)
    for start in range(0, store.vocab_size, count):
        ids = np.arange(start, min(store.vocab_size, start + count))
        found, exact = store.gather(ids), source.records(torch.from_numpy(ids))
        for name, expected in _fields(exact).items():
            wrong = _differs(found[name], expected).reshape(len(ids), -1).any(axis=1)
            if wrong.any():
                token = int(ids[wrong.argmax()])
                return RecordsResult(store.vocab_size, f"{name} of token id {token} is not the source's")
    return RecordsResult(store.vocab_size, "")


def _fields(records: Records) -> dict[str, npt.NDArray[np.float32]]:
    fields = {"embedding": records.embedding.numpy()}
    for layer, rows in records.experts.items():
        fields[f"expert_value.{layer}"] = rows.value.numpy()
        if rows.key is not None:
            fields[f"expert_key.{layer}"] = rows.key.numpy()
    return fields


def _differs(found: npt.NDArray[np.floating], expected: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    step = np.spacing(np.abs(expected).astype(found.dtype)).astype(np.float32)
    rounding = np.float32(1e-6) * np.abs(expected).max()
    differs: npt.NDArray[np.bool_] = ~(np.abs(found.astype(np.float32) - expected) <= step + rounding)
    return differs  # written so that NaN differs
