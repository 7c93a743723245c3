"""From records as they are stored to records of float32.

numpy converts float16 one number at a time, ten times slower than the processor's own instructions for it
(docs/performance.md has figures). ONNX Runtime uses those, and it is here anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_bundle import Floats, ModelConfig, Records, RowDtype, ValueDecoder, record_dtype

# An ONNX model of one node, y = Cast(x), from float16 [n] to float32 [n]; a test builds it again with the onnx package.
CAST_MODEL = bytes.fromhex(
    "080a3a400a170a01781201792204436173742a090a02746f1801a001021201675a100a0178120b0a09080a12050a0312016e"
    "62100a0179120b0a09080112050a0312016e42040a001016"
)

_WORTH_A_CALL = 16_384  # numbers; fewer are converted by numpy before ONNX Runtime has begun

GROUP = 16  # records that are decoded together in prefill: few enough to stay in the processor's cache


class HalfReader:
    """Converts arrays; calls with the same memory as the last one cost least."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the work is too short to be shared
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(CAST_MODEL, options, providers=["CPUExecutionProvider"])
        self._bound: tuple[int, int, int] | None = None

    def read(self, halves: npt.NDArray[np.float16], out: Floats) -> None:
        """Convert one contiguous array [n] into another."""
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
    """Turns records into float32, in memory that the next call uses again."""

    def __init__(self, config: ModelConfig, dtype: RowDtype) -> None:
        self._stored = record_dtype(config, dtype)
        self._values = ValueDecoder(dtype)
        self._dtype = dtype
        self._vectors = config.record_vectors() if config.layers_with_experts else ()
        # All of a float16 record is converted at once, gaps and checksum with it, so every offset doubles.
        self._decoded = _doubled(self._stored) if dtype == "float16" else record_dtype(config, "float32")
        self._halves = HalfReader() if dtype == "float16" else None
        self._out: Records = np.zeros(0, self._decoded)

    def decode(self, records: Records) -> Records:
        """Decode records [n].

        Returns:
            Structured array [n] with "embedding" [d] and "layers" [L] of the model's vectors by name, all float32;
            overwritten by the next call.
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
            if vector.scale:
                self._values.decode(layers[vector.name], layers[vector.scale], out["layers"][vector.name])
            else:
                out["layers"][vector.name] = layers[vector.name]
        return out


def _flat(records: Records, dtype: type[np.floating[Any]]) -> np.ndarray[Any, Any]:
    return records.view(np.uint8).view(dtype)


def _doubled(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Describe the same fields in float32, each number twice as large; the checksum is none and left out."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((_doubled(base), shape))
    if dtype.fields is None:
        return np.dtype("<f4")
    names = [name for name in dtype.names or () if name != "checksum"]
    return np.dtype(
        {
            "names": names,
            "formats": [_doubled(dtype.fields[name][0]) for name in names],
            "offsets": [2 * dtype.fields[name][1] for name in names],
            "itemsize": 2 * dtype.itemsize,
        }
    )
