"""The MoLE mixer: the weighted sum of the current token's experts."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MoleConfig
from molkv_export.graph.decoder import Modules


class MoleMixer(nn.Module):
    """The mixer sum_n softmax_n(x . r_n) v[i,n].

    Every graph computes the softmax in float32, as the published models do.
    """

    def __init__(self, config: MoleConfig, modules: Modules) -> None:
        super().__init__()
        self.router = modules.small_linear(config.hidden_size, config.num_experts)
        self._dtype = modules.dtype

    def forward(self, op: OpBuilder, x: Value, values: Mapping[str, Value], layer: int) -> tuple[Value, Value]:
        """Return the mixed experts [B, T, d] for x [B, T, d], and the scores [B, T, N]. Static graphs have no B."""
        scores = self.router(op, x)
        if self._dtype == ir.DataType.FLOAT:
            weights = op.Softmax(scores, axis=-1)
        else:
            weights = op.Cast(op.Softmax(op.Cast(scores, to=ir.DataType.FLOAT), axis=-1), to=self._dtype)
        value = values[f"expert_value.{layer}"]  # [B, T, N, d]
        mixed = op.MatMul(op.Unsqueeze(weights, [-2]), value)  # [B, T, 1, N] @ [B, T, N, d]
        return op.Squeeze(mixed, [-2]), scores
