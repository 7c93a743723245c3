"""The record: the data that is stored for one token id, and its layout in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from molkv_bundle.config import ModelConfig, Vector
from molkv_bundle.errors import BundleError, ConfigError
from molkv_bundle.manifest import EXPERTS, Field, Table
from molkv_bundle.row_formats import ROW_FORMATS, RowDtype

CHECKSUM_BYTES = 4
PAGE_BYTES = 4096

_FIELD_ALIGNMENT = 4

Records = np.ndarray[Any, np.dtype[np.void]]
Ids = npt.NDArray[np.integer[Any]]  # token ids


def record_dtype(config: ModelConfig, dtype: RowDtype) -> np.dtype[np.void]:
    """Return the structured numpy dtype of a record, little-endian.

    Its fields are:

    - "embedding" [d];
    - "layers" [L], one item for each layer with experts. An item has the vectors of `ModelConfig.record_vectors` by
      name. The scales [..., groups] of a quantized vector come before the vector;
    - "checksum", in the last four bytes.

    Raises:
        ConfigError: The length of a row is not a multiple of this dtype's group size.
    """
    layer = _layer_dtype(config, dtype)
    layers = (layer, (len(config.layers_with_experts),))
    plain = np.dtype(ROW_FORMATS[dtype].plain)
    parts = [("embedding", plain, (config.hidden_size,)), *([("layers", *layers)] if layer.names else [])]
    offsets, size = _offsets([np.dtype((kind, shape)) for _, kind, shape in parts])
    stride = _stride(size + CHECKSUM_BYTES)
    return np.dtype(
        {
            "names": [*(name for name, *_ in parts), "checksum"],
            "formats": [*((kind.newbyteorder("<"), shape) for _, kind, shape in parts), "<u4"],
            "offsets": [*offsets, stride - CHECKSUM_BYTES],
            "itemsize": stride,
        }
    )


def _layer_dtype(config: ModelConfig, dtype: RowDtype) -> np.dtype[np.void]:
    if not config.layers_with_experts:
        return np.dtype([])
    parts = [part for vector in config.record_vectors() for part in _stored(vector, dtype)]
    offsets, total = _offsets([np.dtype((kind, shape)) for _, kind, shape in parts])
    return np.dtype(
        {
            "names": [name for name, *_ in parts],
            "formats": [(kind.newbyteorder("<"), shape) for _, kind, shape in parts],
            "offsets": offsets,
            "itemsize": total,
        }
    )


def _stored(vector: Vector, dtype: RowDtype) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Yield name, dtype and shape of each array that stores a vector."""
    rows, (*places, size) = ROW_FORMATS[dtype], vector.shape
    if not vector.scale:
        yield vector.name, np.dtype(rows.plain), vector.shape
        return
    if size % max(rows.group, 1):
        raise ConfigError(
            f"rows of expert_{vector.name} have {size} numbers, expected a multiple of {rows.group} for {dtype} experts"
        )
    if rows.scale:
        yield vector.scale, np.dtype(rows.scale), (*places, rows.scale_count(size))
    yield vector.name, np.dtype(rows.code), (*places, rows.code_count(size))


def _offsets(parts: list[np.dtype[Any]]) -> tuple[list[int], int]:
    """Return the offsets of consecutive parts, each a multiple of four bytes, and the total size."""
    offsets, end = [], 0
    for part in parts:
        offsets.append(end)
        end += -(-part.itemsize // _FIELD_ALIGNMENT) * _FIELD_ALIGNMENT
    return offsets, end


def _stride(size: int) -> int:
    """Return the distance between records: `size`, rounded up to a multiple of 64 bytes (from 16 KiB on, of a page)."""
    unit = PAGE_BYTES if size >= 16 * 1024 else 64
    return math.ceil(size / unit) * unit


def record_fields(config: ModelConfig, dtype: RowDtype) -> tuple[Field, ...]:
    """Return the arrays inside a record, with names and offsets, as the manifest lists them."""
    record = record_dtype(config, dtype)
    rows = ROW_FORMATS[dtype]
    fields = [Field(name="embedding", dtype=rows.plain, shape=(config.hidden_size,), offset=0)]
    if "layers" not in (record.names or ()):
        return tuple(fields)
    layer, start = _layer_dtype(config, dtype), _offset(record, "layers")
    # The manifest lists the shape of the decoded numbers, not that of the stored codes.
    values = {vector.name: vector.shape for vector in config.record_vectors() if vector.scale}
    for index, number in enumerate(config.layers_with_experts):
        for name in layer.names or ():
            kind = layer[name]
            fields.append(
                Field(
                    name=f"expert_{name}.{number}",
                    dtype=dtype if name in values else cast(RowDtype, kind.base.name),
                    shape=values.get(name, kind.shape),
                    offset=start + index * layer.itemsize + _offset(layer, name),
                )
            )
    return tuple(fields)


def _offset(dtype: np.dtype[np.void], name: str) -> int:
    assert dtype.fields is not None
    return dtype.fields[name][1]


def checked_record_dtype(config: ModelConfig, table: Table, source: str) -> np.dtype[np.void]:
    """Check a table's record layout against the configuration, and return the dtype of the records.

    Args:
        config: The configuration of the model.
        table: The table in the manifest.
        source: The path of the manifest, for the message.

    Raises:
        BundleError: The layout in the manifest differs from the layout that the configuration requires.
    """
    try:
        expected = record_dtype(config, table.dtype)
        fields = record_fields(config, table.dtype)
    except ValueError as error:  # a ConfigError, or numpy's error for records that are too large for a dtype
        raise BundleError(f"{source}: model and tables.{EXPERTS}.dtype contradict each other: {error}") from error
    if table.fields != fields:
        wrong = next(
            (repr(found.name) for found, wanted in zip(table.fields, fields, strict=False) if found != wanted),
            "the number of fields",
        )
        raise BundleError(f"{source}: tables.{EXPERTS}.fields: found another layout than the model's, first at {wrong}")
    if table.stride != expected.itemsize:
        raise BundleError(f"{source}: tables.{EXPERTS}.stride: found {table.stride}, expected {expected.itemsize}")
    return expected
