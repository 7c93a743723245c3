"""The feed-forward network of a layer."""

from __future__ import annotations

from collections.abc import Callable

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.linear import Linear

MakeLinear = Callable[[int, int], Linear]
"""A function (in_features, out_features) that creates a product with a weight of the profile's dtype."""


class FeedForward(nn.Module):
    """The network without a gate: down(gelu(up(x))), with exact GELU."""

    def __init__(
        self, config: LookupExpertConfig, linear: MakeLinear, gelu: Callable[[OpBuilder, Value], Value]
    ) -> None:
        super().__init__()
        self._gelu = gelu
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., d] to [..., d]."""
        return self.down_proj(op, self._gelu(op, self.up_proj(op, x)))


class GatedFeedForward(nn.Module):
    """The network down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LookupExpertConfig, linear: MakeLinear) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., d] to [..., d]."""
        up = self.up_proj(op, x)
        gate = self.gate_proj(op, x)
        silu = op.Mul(gate, op.Sigmoid(gate))
        return self.down_proj(op, op.Mul(silu, up))
