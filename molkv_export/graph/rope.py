"""Rotary position embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from molkv_runtime.rope import rotary_tables


class RotaryCache:
    """cos and sin of all positions as constants of the graph, one pair for every size of rotated vectors."""

    def __init__(self, max_positions: int, theta: float) -> None:
        self.max_positions = max_positions
        self.theta = theta
        self._values: dict[int, tuple[ir.Value, ir.Value]] = {}

    def tables(self, op: OpBuilder, size: int) -> tuple[ir.Value, ir.Value]:
        """Give (cos, sin), each float32 [max_positions, size / 2]."""
        if size not in self._values:
            cos, sin = rotary_tables(np.arange(self.max_positions), size, self.theta)
            root = op.builder.root
            self._values[size] = (
                root.initializer(ir.tensor(cos, name=f"rotary_cos.{size}"), qualify=False),
                root.initializer(ir.tensor(sin, name=f"rotary_sin.{size}"), qualify=False),
            )
        return self._values[size]
