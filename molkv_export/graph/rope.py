"""Rotary position embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from molkv_bundle import rotary_tables


class RotaryCache:
    """cos and sin of all positions as constants of the graph, one pair for every size and scale."""

    def __init__(self, max_positions: int, theta: float) -> None:
        self.max_positions = max_positions
        self.theta = theta
        self._values: dict[str, tuple[ir.Value, ir.Value]] = {}

    def tables(self, op: OpBuilder, size: int, scale: float = 1.0) -> tuple[ir.Value, ir.Value]:
        """Give (cos, sin), each float32 [max_positions, size / 2], times a scale."""
        name = str(size) if scale == 1 else f"{size}.scaled"
        if name not in self._values:
            cos, sin = rotary_tables(np.arange(self.max_positions), size, self.theta)
            root = op.builder.root
            cos, sin = (np.multiply(table, scale, dtype=np.float32) for table in (cos, sin))
            self._values[name] = (
                root.initializer(ir.tensor(cos, name=f"rotary_cos.{name}"), qualify=False),
                root.initializer(ir.tensor(sin, name=f"rotary_sin.{name}"), qualify=False),
            )
        return self._values[name]
