"""The conversion of stored records to float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_bundle import ROW_FORMATS, Floats, ModelConfig, Records, RowDtype, ValueDecoder

# An ONNX model of one node, y = Cast(x), from float16 [n] to float32 [n]. A test compares these bytes with the
# model that the onnx package builds.
CAST_MODEL = bytes.fromhex(
    "080a3a400a170a01781201792204436173742a090a02746f1801a001021201675a100a0178120b0a09080a12050a0312016e"
    "62100a0179120b0a09080112050a0312016e42040a001016"
)

_WORTH_A_CALL = 16_384  # for fewer numbers, numpy is faster than a call of ONNX Runtime


class HalfReader:
    """A converter from float16 to float32 that uses ONNX Runtime. Repeated calls with the same memory are fastest.

    numpy converts one number at a time, which is ten times slower than the processor's instructions for float16
    (docs/performance.md has figures). ONNX Runtime uses these instructions, and is already a dependency.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the work is too small for several threads
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(CAST_MODEL, options, providers=["CPUExecutionProvider"])
        self._bound: tuple[int, int, int] | None = None

    def read(self, halves: npt.NDArray[np.float16], out: Floats) -> None:
        """Convert `halves` [n] to `out` [n]; both must be contiguous."""
        place = halves.ctypes.data, out.ctypes.data, halves.size
        if place != self._bound:
            self._binding = self._session.io_binding()
            self._binding.bind_input("x", "cpu", 0, np.float16, [halves.size], place[0])
            self._binding.bind_output("y", "cpu", 0, np.float32, [halves.size], place[1])
            self._bound = place
        self._session.run_with_iobinding(self._binding)


class Scratch:
    """Memory for arrays that are needed for a moment. It grows to the largest array; then it allocates nothing."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._memory: npt.NDArray[Any] = np.empty(0, dtype)

    def array(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """Return an array with any contents. The next array has the same memory."""
        size = math.prod(shape)
        if self._memory.size < size:
            self._memory = np.empty(size, self._memory.dtype)
        return self._memory[:size].reshape(shape)


class RecordDecoder:
    """A decoder of the vectors in stored records. It writes to memory of the caller."""

    def __init__(self, config: ModelConfig, dtype: RowDtype) -> None:
        self._values = ValueDecoder(dtype)
        is_quantized = bool(ROW_FORMATS[dtype].scale)
        self._scales = {
            vector.name: vector.scale for vector in config.record_vectors() if vector.scale and is_quantized
        }
        self._reader = HalfReader()
        self._halves, self._floats = Scratch(np.float16), Scratch(np.float32)

    def read(self, fields: Records, name: str, out: Floats) -> None:
        """Decode a vector. If `out` is contiguous, this makes one pass over it.

        Args:
            fields: Stored records [...], or items [...] of their field "layers".
            name: Name of the vector.
            out: The output [..., *shape of the vector], float32 or float16.
        """
        stored, scale = fields[name], self._scales.get(name)
        if scale is None and (stored.dtype in (np.float32, out.dtype) or stored.size < _WORTH_A_CALL):
            np.copyto(out, stored)
            return
        is_direct = out.dtype == np.float32 and out.flags.c_contiguous
        numbers = out if is_direct else self._floats.array(out.shape)
        if scale is not None:
            self._values.decode(stored, fields[scale], numbers)
        else:
            halves = self._halves.array(stored.shape)
            np.copyto(halves, stored)
            self._reader.read(halves.reshape(-1), numbers.reshape(-1))
        if not is_direct:
            np.copyto(out, numbers)
