"""How a MoLE layer mixes the experts of the present token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MoleConfig
from molkv_export.graph.decoder import Modules
from molkv_export.graph.linear import Linear


class MoleInputs(NamedTuple):
    """What the host gathers for one layer."""

    value: Value  # [B, T, N, d], in static graphs [T, N, d]


class MoleMixer(nn.Module):
    """sum_n softmax_n(n . r_n) v[i,n]; the softmax is in float32 whatever the graph computes in, as published."""

    def __init__(self, router: Linear, dtype: ir.DataType) -> None:
        """Take the router and the type that the graph computes in."""
        super().__init__()
        self.router = router
        self._dtype = dtype

    def forward(self, op: OpBuilder, x: Value, experts: MoleInputs) -> tuple[Value, Value]:
        """Mix for x [B, T, d]; gives [B, T, d] and the scores [B, T, N]. Static graphs have no B."""
        scores = self.router(op, x)
        if self._dtype == ir.DataType.FLOAT:
            weights = op.Softmax(scores, axis=-1)
        else:
            weights = op.Cast(op.Softmax(op.Cast(scores, to=ir.DataType.FLOAT), axis=-1), to=self._dtype)
        mixed = op.MatMul(op.Unsqueeze(weights, [-2]), experts.value)  # [B, T, 1, N] @ [B, T, N, d]
        return op.Squeeze(mixed, [-2]), scores


class MoleExperts:
    """The `Experts` of MoLE, in graphs of every profile."""

    def __init__(self, config: MoleConfig, modules: Modules) -> None:
        self._config, self._modules = config, modules

    def mixer(self) -> MoleMixer:
        """Make the mixer of one layer."""
        router = self._modules.small_linear(self._config.hidden_size, self._config.num_experts)
        return MoleMixer(router, self._modules.dtype)

    def inputs(self, values: Mapping[str, Value], layer: int) -> MoleInputs:
        """Choose the inputs of a layer."""
        return MoleInputs(values[f"expert_value.{layer}"])
