"""The floating-point type that a static graph computes in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder


class Number(NamedTuple):
    """Makes constants of the type; the same constant is stored once."""

    dtype: ir.DataType

    def __call__(self, op: OpBuilder, value: float) -> ir.Value:
        """Give a scalar of the graph."""
        name = f"constant.{value!r}"
        root = op.builder.root
        known: ir.Value | None = root.graph.initializers.get(name)
        if known is not None:
            return known
        return root.initializer(ir.tensor(np.array(value, self.dtype.numpy()), name=name), qualify=False)


FLOAT = Number(ir.DataType.FLOAT)
HALF = Number(ir.DataType.FLOAT16)
