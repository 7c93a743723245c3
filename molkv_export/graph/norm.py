"""Root-mean-square normalization."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, alone or fused with the addition before it (ONNX Runtime's operators)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([size])
        self.eps = eps

    def forward(self, op: OpBuilder, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """Give (RMSNorm(x + skip), x + skip); without skip (RMSNorm(x), x)."""
        if skip is None:
            # ONNX Runtime registers this operator in the default domain, though ONNX does not define it.
            return op.SimplifiedLayerNormalization(x, self.weight, axis=-1, epsilon=self.eps, stash_type=1), x
        normed, _, _, total = op.SkipSimplifiedLayerNormalization(
            x, skip, self.weight, epsilon=self.eps, _domain="com.microsoft", _version=1, _outputs=4
        )
        return normed, total
