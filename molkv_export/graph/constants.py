"""Scalar constants of a graph; equal constants are stored once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder


class Constants(NamedTuple):
    """A factory of scalar constants of one dtype.

    ONNX Runtime merges nodes that have the same inputs. It does not find out that two integer constants are equal.
    """

    dtype: ir.DataType

    def __call__(self, op: OpBuilder, value: float) -> ir.Value:
        """Return the graph's initializer for a scalar."""
        name = f"constant.{value!r}"
        root = op.builder.root
        known: ir.Value | None = root.graph.initializers.get(name)
        if known is not None:
            return known
        return root.initializer(ir.tensor(np.array(value, self.dtype.numpy()), name=name), qualify=False)


FLOAT = Constants(ir.DataType.FLOAT)
HALF = Constants(ir.DataType.FLOAT16)
UINT8 = Constants(ir.DataType.UINT8)
