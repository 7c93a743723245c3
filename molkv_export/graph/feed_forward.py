"""The feed-forward network of a layer. A profile's modules choose how a gated network computes gate and up."""

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
        return self.down_proj(op, _gated(op, self.gate_proj(op, x), up))


class MergedFeedForward(nn.Module):
    """The network down(silu(gate(x)) * up(x)), with one product for gate and up.

    The threads of one product start and wait once, and a kernel that rounds activations rounds x once.
    """

    def __init__(self, config: LookupExpertConfig, linear: MakeLinear) -> None:
        super().__init__()
        self._size = config.intermediate_size
        self.gate_up_proj = linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., d] to [..., d]."""
        both = self.gate_up_proj(op, x)
        gate = op.Slice(both, [0], [self._size], [-1])
        up = op.Slice(both, [self._size], [2 * self._size], [-1])
        return self.down_proj(op, _gated(op, gate, up))


def _gated(op: OpBuilder, gate: Value, up: Value) -> Value:
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
