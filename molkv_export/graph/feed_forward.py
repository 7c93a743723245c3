"""The dense feed-forward network."""

from __future__ import annotations

from typing import Literal

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.linear import Linear


class FeedForward(nn.Module):
    """`silu`: down(silu(gate(x)) * up(x)). `gelu`: down(gelu(up(x))), exact."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: Literal["silu", "gelu"]) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size) if hidden_act == "silu" else None
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [B, T, d] to [B, T, d]."""
        up = self.up_proj(op, x)
        if self.gate_proj is None:
            return self.down_proj(op, op.Gelu(up, approximate="none"))
        gate = self.gate_proj(op, x)
        silu = op.Mul(gate, op.Sigmoid(gate))
        return self.down_proj(op, op.Mul(silu, up))
