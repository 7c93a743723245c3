"""How a MoLE layer mixes the experts of the present token."""

from __future__ import annotations

from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.linear import Linear


class MoleInputs(NamedTuple):
    """What the host gathers for one layer."""

    value: Value  # [B, T, N, d], in static graphs [T, N, d]


class MoleMixer(nn.Module):
    """sum_n softmax_n(n . r_n) v[i,n]."""

    def __init__(self, router: Linear) -> None:
        super().__init__()
        self.router = router

    def forward(self, op: OpBuilder, x: Value, experts: MoleInputs) -> tuple[Value, Value]:
        """Mix for x [B, T, d]; gives [B, T, d] and the scores [B, T, N]. Static graphs have no B."""
        scores = self.router(op, x)
        weights = op.Softmax(scores, axis=-1)
        mixed = op.MatMul(op.Unsqueeze(weights, [-2]), experts.value)  # [B, T, 1, N] @ [B, T, N, d]
        return op.Squeeze(mixed, [-2]), scores
