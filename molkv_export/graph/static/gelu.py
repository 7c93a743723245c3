"""GELU where a compiler knows neither Gelu nor Erf."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder

from molkv_export.graph.static.number import Number

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erfc(z) for z >= 0 within 1.5e-7.
_P = 0.3275911
_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def gelu_by_exp(op: OpBuilder, x: Value, number: Number) -> Value:
    """Compute x * Phi(x) = relu(x) - |x| / 2 * erfc(|x| / sqrt(2)) out of Exp."""
    size = op.Abs(x)
    z = op.Mul(size, number(op, 0.5**0.5))
    t = op.Div(number(op, 1.0), op.Add(op.Mul(z, number(op, _P)), number(op, 1.0)))
    polynomial = op.Mul(t, number(op, _A[0]))
    for coefficient in _A[1:]:
        polynomial = op.Mul(op.Add(polynomial, number(op, coefficient)), t)
    tail = op.Exp(op.Mul(op.Mul(z, z), number(op, -1.0)))
    return op.Sub(op.Relu(x), op.Mul(op.Mul(size, number(op, 0.5)), op.Mul(polynomial, tail)))
