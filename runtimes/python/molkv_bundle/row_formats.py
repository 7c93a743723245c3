"""The storage formats of the numbers in a record, and their conversion to float32.

Embeddings and keys are float16 or float32 in every store. Values can also be quantized; their scales are then in the
record, too. `docs/bundle-format.md`, "Numbers", describes the formats.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
RowDtype = Literal["float32", "float16", "int8", "int4", "nf4"]

# The levels of NF4 in QLoRA (arXiv 2305.14314, appendix E): quantiles of a normal distribution.
NF4_LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
INT4_LEVELS = np.arange(-8, 8, dtype=np.float32)


class RowFormat(NamedTuple):
    """The storage format of rows of values."""

    plain: Literal["float32", "float16"]  # dtype of embeddings and keys, and of values that are not quantized
    code: str  # dtype of a stored code; a byte holds two 4-bit codes, the first one in its low half
    scale: str = ""  # dtype of scales; empty: not quantized
    group: int = 0  # number of consecutive numbers that share a scale; 0: the whole row of an expert
    levels: npt.NDArray[np.float32] | None = None  # the numbers that the 4-bit codes stand for, before scaling

    def code_count(self, size: int) -> int:
        """Return the number of items of dtype `code` that store a row of `size` numbers."""
        return size if self.levels is None else size // 2

    def scale_count(self, size: int) -> int:
        """Return the number of scales of a row of `size` numbers."""
        return size // self.group if self.group else 1


ROW_FORMATS: dict[RowDtype, RowFormat] = {
    "float32": RowFormat("float32", "float32"),
    "float16": RowFormat("float16", "float16"),
    "int8": RowFormat("float16", "int8", scale="float32"),
    "int4": RowFormat("float16", "uint8", scale="float16", group=32, levels=INT4_LEVELS),
    "nf4": RowFormat("float16", "uint8", scale="float16", group=64, levels=NF4_LEVELS),
}


class ValueDecoder:
    """A decoder from stored values to float32. It keeps its scratch memory: calls of equal size allocate no memory."""

    def __init__(self, dtype: RowDtype) -> None:
        self._format = ROW_FORMATS[dtype]
        self._scratch = (np.empty(0, np.intp), np.empty(0, np.complex64))
        if (levels := self._format.levels) is not None:
            # One look-up decodes both numbers of a byte: a complex64 is as large as two float32.
            byte = np.arange(256)
            self._pairs = np.stack([levels[byte & 15], levels[byte >> 4]], axis=-1).view(np.complex64)[:, 0]

    def decode(self, codes: npt.NDArray[Any], scales: npt.NDArray[Any] | None, out: Floats) -> None:
        """Decode rows.

        Args:
            codes: The stored codes [..., codes per row].
            scales: The scales [..., scales per row]; None if the dtype has none.
            out: The output, float32 [..., numbers per row]. Only its last axis must be contiguous.
        """
        if scales is None:
            np.copyto(out, codes)
            return
        # The numbers of a group get their own axis, so that a scale broadcasts over its group.
        grouped = (*scales.shape, out.shape[-1] // scales.shape[-1])
        numbers = place = _split_last(out, grouped)
        if self._format.levels is None:
            np.copyto(out, codes)  # faster than a product that converts, too
        else:
            numbers = self._levels_of(codes).reshape(grouped)
        np.multiply(numbers, scales[..., None], out=place, dtype=np.float32)

    def _levels_of(self, codes: npt.NDArray[np.uint8]) -> Floats:
        if self._scratch[0].size < codes.size:
            self._scratch = (np.empty(codes.size, np.intp), np.empty(codes.size, np.complex64))
        index = self._scratch[0][: codes.size].reshape(codes.shape)
        pairs = self._scratch[1][: codes.size].reshape(codes.shape)
        np.copyto(index, codes)
        np.take(self._pairs, index, out=pairs, mode="clip")  # the default mode, "raise", would buffer the output
        return pairs.view(np.float32)


def _split_last(array: Floats, shape: tuple[int, ...]) -> Floats:
    """Return a view of `array` with `shape`, which splits the last axis. The last axis must be contiguous."""
    item = array.itemsize
    strides = (*array.strides[:-1], shape[-1] * item, item)
    view: npt.NDArray[Any] = np.lib.stride_tricks.as_strided(array, shape, strides)
    return view
