"""A matrix product with a constant weight."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn


class Linear(nn.Module):
    """x @ weight, without bias. The weight is stored [in, out], transposed to PyTorch's, as MatMul takes it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([in_features, out_features])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return op.MatMul(x, self.weight)
