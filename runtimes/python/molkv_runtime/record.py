"""The record: everything that is stored for one token id, and how it is laid out in bytes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_runtime.config import ModelConfig
from molkv_runtime.errors import BundleError
from molkv_runtime.manifest import Field, RowDtype, StoreInfo

CHECKSUM_BYTES = 4
PAGE_BYTES = 4096

Records = np.ndarray[Any, np.dtype[np.void]]


def record_fields(config: ModelConfig, dtype: RowDtype) -> tuple[Field, ...]:
    """Lay out a record: the input embedding, then for every layer with experts its keys and its values."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("embedding", (config.hidden_size,))]
    for layer in config.layers_with_experts:
        if config.has_keys:
            shapes.append((f"expert_key.{layer}", (config.num_experts, config.expert_key_size)))
        shapes.append((f"expert_value.{layer}", (config.num_experts, config.hidden_size)))
    fields, offset = [], 0
    for name, shape in shapes:
        fields.append(Field(name=name, dtype=dtype, shape=shape, offset=offset))
        offset += int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return tuple(fields)


def record_stride(fields: tuple[Field, ...]) -> int:
    """Give the distance of records in bytes: payload and checksum, rounded up to 64, or to a page from 16 KiB on."""
    last = fields[-1]
    size = last.offset + int(np.prod(last.shape, dtype=np.int64)) * np.dtype(last.dtype).itemsize + CHECKSUM_BYTES
    unit = PAGE_BYTES if size >= 16 * 1024 else 64
    return -(-size // unit) * unit


def record_dtype(fields: tuple[Field, ...], stride: int) -> np.dtype[np.void]:
    """Describe a record as a structured numpy dtype, little-endian, with the checksum in its last four bytes."""
    return np.dtype(
        {
            "names": [*(field.name for field in fields), "checksum"],
            "formats": [*((np.dtype(field.dtype).newbyteorder("<"), field.shape) for field in fields), "<u4"],
            "offsets": [*(field.offset for field in fields), stride - CHECKSUM_BYTES],
            "itemsize": stride,
        }
    )


def checked_record_dtype(config: ModelConfig, store: StoreInfo, source: str) -> np.dtype[np.void]:
    """Give the dtype of a store's records after checking that they are what the configuration calls for.

    Raises:
        BundleError: The layout in the manifest is not the one this model has.
    """
    fields = record_fields(config, store.dtype)
    if store.fields != fields:
        wrong = next(
            (found.name for found, wanted in zip(store.fields, fields, strict=False) if found != wanted), "a count"
        )
        raise BundleError(f"{source}: store.fields does not fit the model's configuration (first at {wrong})")
    if store.stride != record_stride(fields):
        raise BundleError(f"{source}: store.stride is {store.stride}, expected {record_stride(fields)}")
    return record_dtype(fields, store.stride)


def checksum(record: npt.NDArray[np.uint8]) -> int:
    """CRC-32 (as in zlib) of all bytes of a record [stride] but the last four."""
    return zlib.crc32(record.data[:-CHECKSUM_BYTES])
