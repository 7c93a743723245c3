"""The conversion of stored records to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_bundle import Floats, ModelConfig, Records, RowDtype, ValueDecoder, WindowDtype, decoded_dtype

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
        if halves.size < _WORTH_A_CALL:
            np.copyto(out, halves)
            return
        place = halves.ctypes.data, out.ctypes.data, halves.size
        if place != self._bound:
            self._binding = self._session.io_binding()
            self._binding.bind_input("x", "cpu", 0, np.float16, [halves.size], place[0])
            self._binding.bind_output("y", "cpu", 0, np.float32, [halves.size], place[1])
            self._bound = place
        self._session.run_with_iobinding(self._binding)


class RecordDecoder:
    """A decoder from stored records to float32. Its results are in memory that the next call reuses.

    Values of an int8 store stay int8 codes with scales if the window is int8.
    """

    def __init__(self, config: ModelConfig, dtype: RowDtype, window_dtype: WindowDtype = "float32") -> None:
        self._values = ValueDecoder(dtype)
        self._dtype = dtype
        self._vectors = config.record_vectors() if config.layers_with_experts else ()
        self._keeps_codes = dtype == window_dtype == "int8"
        self._decoded = decoded_dtype(config, dtype, keep_codes=self._keeps_codes)
        self._halves = HalfReader() if dtype == "float16" else None
        self._out: Records = np.zeros(0, self._decoded)

    def decode(self, records: Records) -> Records:
        """Decode records [n].

        Returns:
            Structured array [n] with "embedding" [d] and "layers" [L], which has the model's vectors by name. The
            vectors are float32, or int8 codes with their scales. The next call overwrites the array. For a float32
            store the result is `records` itself.
        """
        if self._dtype == "float32":
            return records
        if len(self._out) < len(records):
            self._out = np.zeros(len(records), self._decoded)
        out = self._out[: len(records)]
        if self._halves is not None:
            self._halves.read(_flat(records, np.float16), _flat(out, np.float32))
            return out
        out["embedding"] = records["embedding"]
        for vector in self._vectors:
            layers = records["layers"]
            if vector.scale and not self._keeps_codes:
                self._values.decode(layers[vector.name], layers[vector.scale], out["layers"][vector.name])
                continue
            for name in filter(None, (vector.name, vector.scale)):
                out["layers"][name] = layers[name]
        return out


def _flat(records: Records, dtype: type[np.floating[Any]]) -> np.ndarray[Any, Any]:
    return records.view(np.uint8).view(dtype)
