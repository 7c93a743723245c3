"""How the numbers of a record are stored, and how stored numbers become float32 (`docs/bundle-format.md`, "Numbers").

Embeddings and keys are float16 or float32 in every store; values can also be quantized, with scales beside them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
RowDtype = Literal["float32", "float16", "int8", "int4", "nf4"]

# The quantiles of a normal distribution that QLoRA (arXiv 2305.14314, appendix E) quantizes to.
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
    """How rows of values are stored."""

    plain: Literal["float32", "float16"]  # dtype of embeddings and keys, and of values that are not quantized
    code: str  # dtype of a stored code; 4-bit codes stand in pairs in a byte, the first in its low half
    scale: str = ""  # dtype of scales; empty: not quantized
    group: int = 0  # consecutive numbers that share a scale; 0: the whole row of one expert
    levels: npt.NDArray[np.float32] | None = None  # what 4-bit codes stand for, before scaling

    def code_count(self, size: int) -> int:
        """Stored codes of a row of `size` numbers."""
        return size if self.levels is None else size // 2

    def scale_count(self, size: int) -> int:
        """Scales of a row of `size` numbers."""
        return size // self.group if self.group else 1


ROW_FORMATS: dict[RowDtype, RowFormat] = {
    "float32": RowFormat("float32", "float32"),
    "float16": RowFormat("float16", "float16"),
    "int8": RowFormat("float16", "int8", scale="float32"),
    "int4": RowFormat("float16", "uint8", scale="float16", group=32, levels=INT4_LEVELS),
    "nf4": RowFormat("float16", "uint8", scale="float16", group=64, levels=NF4_LEVELS),
}


class ValueDecoder:
    """Turns stored values into float32. Scratch memory is kept, so that equal calls allocate nothing."""

    def __init__(self, dtype: RowDtype) -> None:
        self._format = ROW_FORMATS[dtype]
        self._scratch = (np.empty(0, np.intp), np.empty(0, np.complex64))
        if (levels := self._format.levels) is not None:
            # Both numbers of a byte at once: a pair of float32 is as large as one complex64.
            byte = np.arange(256)
            self._pairs = np.stack([levels[byte & 15], levels[byte >> 4]], axis=-1).view(np.complex64)[:, 0]

    def decode(self, codes: npt.NDArray[Any], scales: npt.NDArray[Any] | None, out: Floats) -> None:
        """Decode rows.

        Args:
            codes: As they are stored, [..., codes of a row].
            scales: Their scales [..., scales of a row]; None if the dtype has none.
            out: float32 [..., numbers of a row], need not be contiguous.
        """
        if scales is None:
            np.copyto(out, codes)
            return
        numbers = codes if self._format.levels is None else self._levels_of(codes)
        # The numbers of a group next to each other in an axis of their own, so that scales broadcast over it.
        grouped = (*scales.shape, out.shape[-1] // scales.shape[-1])
        np.multiply(numbers.reshape(grouped), scales[..., None], out=_split_last(out, grouped), dtype=np.float32)

    def _levels_of(self, codes: npt.NDArray[np.uint8]) -> Floats:
        if self._scratch[0].size < codes.size:
            self._scratch = (np.empty(codes.size, np.intp), np.empty(codes.size, np.complex64))
        index = self._scratch[0][: codes.size].reshape(codes.shape)
        pairs = self._scratch[1][: codes.size].reshape(codes.shape)
        np.copyto(index, codes)
        np.take(self._pairs, index, out=pairs, mode="clip")  # mode "raise" would buffer the output
        return pairs.view(np.float32)


def _split_last(array: Floats, shape: tuple[int, ...]) -> Floats:
    """Return a view of another shape that splits the last axis, which must be dense; never a copy."""
    item = array.itemsize
    strides = (*array.strides[:-1], shape[-1] * item, item)
    view: npt.NDArray[Any] = np.lib.stride_tricks.as_strided(array, shape, strides)
    return view
