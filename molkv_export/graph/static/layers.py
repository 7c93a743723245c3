"""Building blocks of static graphs: constants, norms, GELU, rotary positions and integer products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir import Value
from onnxruntime.quantization.quant_utils import quantize_nparray
from onnxscript import OpBuilder, nn

from molkv_bundle import Floats
from molkv_export.graph.constants import Constants
from molkv_export.graph.linear import Linear, Parameters

_SMALLEST = 2.0**-14  # float16's smallest normal number
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erfc(z) for z >= 0 within 1.5e-7.
_P = 0.3275911
_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_TINY = float(np.finfo(np.float32).tiny)


class StaticRMSNorm(nn.Module):
    """RMSNorm over the last dimension. It uses Div, since CoreML's Reciprocal adds 1e-4 to its input."""

    def __init__(self, size: int, eps: float, constant: Constants) -> None:
        super().__init__()
        self.constant = constant
        self.weight = nn.Parameter([size], constant.dtype)
        self.eps = eps

    def forward(self, op: OpBuilder, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """Return the norm of x + skip, and x + skip. If `skip` is None, return the norm of x, and x."""
        total = x if skip is None else op.Add(x, skip)
        return op.Mul(self._normed(op, total), self.weight), total

    def _normed(self, op: OpBuilder, x: Value) -> Value:
        return op.Div(x, op.Sqrt(op.Add(_mean_square(op, x), self.constant(op, self.eps))))


class HalfRMSNorm(StaticRMSNorm):
    """RMSNorm in float16, where the square of 256 is infinite; so a row is first divided by its largest magnitude."""

    def _normed(self, op: OpBuilder, x: Value) -> Value:
        sizes = op.Max(x, op.Sub(self.constant(op, 0.0), x))  # CoreML has no Abs
        largest = op.Max(op.ReduceMax(sizes, [-1], keepdims=1), self.constant(op, _SMALLEST))
        scaled = op.Div(x, largest)
        eps = op.Div(op.Div(self.constant(op, self.eps), largest), largest)
        # In float16, `eps` can be 0 here. Only a row of zeros has a mean square below _SMALLEST.
        mean = op.Max(op.Add(_mean_square(op, scaled), eps), self.constant(op, _SMALLEST))
        return op.Div(scaled, op.Sqrt(mean))


def _mean_square(op: OpBuilder, x: Value) -> Value:
    return op.ReduceMean(op.Mul(x, x), [-1], keepdims=1)


def gelu_by_exp(op: OpBuilder, x: Value, constant: Constants) -> Value:
    """Compute x * Phi(x) = relu(x) - |x| / 2 * erfc(|x| / sqrt(2)); erfc is approximated with Exp."""
    size = op.Abs(x)
    z = op.Mul(size, constant(op, 0.5**0.5))
    t = op.Div(constant(op, 1.0), op.Add(op.Mul(z, constant(op, _P)), constant(op, 1.0)))
    polynomial = op.Mul(t, constant(op, _A[0]))
    for coefficient in _A[1:]:
        polynomial = op.Mul(op.Add(polynomial, constant(op, coefficient)), t)
    tail = op.Exp(op.Mul(op.Mul(z, z), constant(op, -1.0)))
    return op.Sub(op.Relu(x), op.Mul(op.Mul(size, constant(op, 0.5)), op.Mul(polynomial, tail)))


class Rotary(NamedTuple):
    """The cos and sin of a call's positions, for both halves of a head: [cos, cos] and [-sin, sin]."""

    cos: Value  # has the rank of the tensor that is rotated: [T, size] or [T, 1, size]
    sin: Value

    def __call__(self, op: OpBuilder, x: Value, size: int, last: int) -> Value:
        """Rotate x [..., size], whose last axis has the index `last`: x * cos + (second half, first half) * sin."""
        half = size // 2
        first, second = op.Slice(x, [0], [half], [last], [1]), op.Slice(x, [half], [size], [last], [1])
        return op.Add(op.Mul(x, self.cos), op.Mul(op.Concat(second, first, axis=last), self.sin))


class QdqLinear(Linear):
    """A MatMul between DequantizeLinear and QuantizeLinear, which a compiler fuses into one product of integers.

    NNAPI requires one scale for the whole weight, and the dtype uint8 for inputs and outputs.
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
        """Return codes from -127 to 127, and the scale."""
        scale = np.float32(max(float(np.abs(weight).max()) / 127, _TINY))
        return {"weight": quantize_nparray(TensorProto.INT8, weight, scale, 0), "weight_scale": np.asarray(scale)}


class SplitQkv(nn.Module):
    """Three products for query, key and value; each has its own scale, since values are far smaller than keys."""

    def __init__(self, q_proj: Linear, k_proj: Linear, v_proj: Linear) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [T, d] to [T, (H + 2 * Hkv) * head_dim]."""
        return op.Concat(self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x), axis=1)


def _rounded(op: OpBuilder, x: Value, scale: Value, zero_point: Value) -> Value:
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)
