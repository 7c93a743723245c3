"""Root-mean-square normalization out of plain operators."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.static.number import Number

_SMALLEST = 2.0**-14  # float16's smallest normal number


class StaticRMSNorm(nn.Module):
    """RMSNorm over the last dimension. By Div: CoreML's inverse, which Reciprocal becomes, adds 1e-4."""

    def __init__(self, size: int, eps: float, number: Number) -> None:
        super().__init__()
        self.number = number
        self.weight = nn.Parameter([size], number.dtype)
        self.eps = eps

    def forward(self, op: OpBuilder, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """Give (RMSNorm(x + skip), x + skip); without skip (RMSNorm(x), x)."""
        total = x if skip is None else op.Add(x, skip)
        return op.Mul(self._normed(op, total), self.weight), total

    def _normed(self, op: OpBuilder, x: Value) -> Value:
        return op.Div(x, op.Sqrt(op.Add(_mean_square(op, x), self.number(op, self.eps))))


class HalfRMSNorm(StaticRMSNorm):
    """The same in float16, in which the square of 256 is infinite: a row is first divided by its largest number."""

    def _normed(self, op: OpBuilder, x: Value) -> Value:
        sizes = op.Max(x, op.Sub(self.number(op, 0.0), x))  # CoreML has no Abs
        largest = op.Max(op.ReduceMax(sizes, [-1], keepdims=1), self.number(op, _SMALLEST))
        scaled = op.Div(x, largest)
        eps = op.Div(op.Div(self.number(op, self.eps), largest), largest)
        # Nothing but a row of zeros has a mean square below that, and eps may have become 0.
        mean = op.Max(op.Add(_mean_square(op, scaled), eps), self.number(op, _SMALLEST))
        return op.Div(scaled, op.Sqrt(mean))


def _mean_square(op: OpBuilder, x: Value) -> Value:
    return op.ReduceMean(op.Mul(x, x), [-1], keepdims=1)
