"""Rotary position embedding by cos and sin that the host makes."""

from __future__ import annotations

from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder


class Rotary(NamedTuple):
    """cos and sin of the positions at hand, over both halves of a head: [cos, cos] and [-sin, sin]."""

    cos: Value  # of the rank of what is rotated: [T, size] or [T, 1, size]
    sin: Value

    def __call__(self, op: OpBuilder, x: Value, size: int, last: int) -> Value:
        """Rotate x [..., size], whose last axis is `last`; halves are paired: x * cos + (second, first) * sin."""
        half = size // 2
        first, second = op.Slice(x, [0], [half], [last], [1]), op.Slice(x, [half], [size], [last], [1])
        return op.Add(op.Mul(x, self.cos), op.Mul(op.Concat(second, first, axis=last), self.sin))
