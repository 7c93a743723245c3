"""Products whose weights and activations are int8, with scales that are fixed when the model is exported (QDQ)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir import Value
from onnxruntime.quantization.quant_utils import quantize_nparray
from onnxscript import OpBuilder, nn

from molkv_bundle import Floats
from molkv_export.graph.linear import Linear, Parameters

_TINY = float(np.finfo(np.float32).tiny)


class QdqLinear(Linear):
    """A MatMul between DequantizeLinear and QuantizeLinear, which a compiler makes one product of integers.

    NNAPI takes one scale for all of a weight, and wants what goes in and comes out as uint8.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter([in_features, out_features], ir.DataType.INT8)
        self.weight_scale = nn.Parameter([])
        self.input_scale, self.output_scale = nn.Parameter([]), nn.Parameter([])
        self.input_zero_point = nn.Parameter([], ir.DataType.UINT8)
        self.output_zero_point = nn.Parameter([], ir.DataType.UINT8)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [T, in] to [T, out]."""
        x = _rounded(op, x, self.input_scale, self.input_zero_point)
        zero = op.Constant(value=ir.tensor(np.int8(0)))
        product = op.MatMul(x, op.DequantizeLinear(self.weight, self.weight_scale, zero))
        return _rounded(op, product, self.output_scale, self.output_zero_point)

    def encode(self, weight: Floats) -> Parameters:
        """Round to codes from -127 to 127."""
        scale = np.float32(max(float(np.abs(weight).max()) / 127, _TINY))
        return {"weight": quantize_nparray(TensorProto.INT8, weight, scale, 0), "weight_scale": np.asarray(scale)}


class SplitQkv(nn.Module):
    """Query, key and value side by side; each has a scale of its own, since values are far smaller than keys."""

    def __init__(self, q_proj: Linear, k_proj: Linear, v_proj: Linear) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [T, d] to [T, (H + 2 * Hkv) * head_dim]."""
        return op.Concat(self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x), axis=1)


def _rounded(op: OpBuilder, x: Value, scale: Value, zero_point: Value) -> Value:
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)
