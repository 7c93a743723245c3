"""The dense feed-forward network."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.modules import Modules


class FeedForward(nn.Module):
    """`silu`: down(silu(gate(x)) * up(x)). `gelu`: down(gelu(up(x))), exact."""

    def __init__(self, config: LookupExpertConfig, modules: Modules) -> None:
        super().__init__()
        self._gelu = modules.gelu
        sizes = config.hidden_size, config.intermediate_size
        self.gate_proj = modules.linear(*sizes) if config.hidden_act == "silu" else None
        self.up_proj = modules.linear(*sizes)
        self.down_proj = modules.linear(*sizes[::-1])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., d] to [..., d]."""
        up = self.up_proj(op, x)
        if self.gate_proj is None:
            return self.down_proj(op, self._gelu(op, up))
        gate = self.gate_proj(op, x)
        silu = op.Mul(gate, op.Sigmoid(gate))
        return self.down_proj(op, op.Mul(silu, up))
