"""float16 to float32 at the speed of memory.

numpy converts float16 one number at a time, ten times slower than the processor's own instructions for it
(docs/performance.md has figures). ONNX Runtime uses those, and it is here anyway.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_bundle import Floats

# An ONNX model of one node, y = Cast(x), from float16 [n] to float32 [n]; a test builds it again with the onnx package.
CAST_MODEL = bytes.fromhex(
    "080a3a400a170a01781201792204436173742a090a02746f1801a001021201675a100a0178120b0a09080a12050a0312016e"
    "62100a0179120b0a09080112050a0312016e42040a001016"
)


_WORTH_A_CALL = 16_384  # numbers; fewer are converted by numpy before ONNX Runtime has begun


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
