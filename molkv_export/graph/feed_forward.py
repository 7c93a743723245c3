"""The dense feed-forward network."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.linear import DenseFormat
from molkv_runtime.config import ModelConfig


class FeedForward(nn.Module):
    """`silu`: down(silu(gate(x)) * up(x)). `gelu`: down(gelu(up(x))), exact."""

    def __init__(self, config: ModelConfig, dense: DenseFormat) -> None:
        super().__init__()
        sizes = config.hidden_size, config.intermediate_size
        self.gate_proj = dense.linear(*sizes) if config.hidden_act == "silu" else None
        self.up_proj = dense.linear(*sizes)
        self.down_proj = dense.linear(*sizes[::-1])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [B, T, d] to [B, T, d]."""
        up = self.up_proj(op, x)
        if self.gate_proj is None:
            return self.down_proj(op, op.Gelu(up, approximate="none"))
        gate = self.gate_proj(op, x)
        silu = op.Mul(gate, op.Sigmoid(gate))
        return self.down_proj(op, op.Mul(silu, up))
