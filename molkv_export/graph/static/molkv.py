"""The MoLKV mixer of static profiles: attention to the key-value experts in the window."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MolkvConfig
from molkv_export.graph.static.layers import Rotary
from molkv_export.graph.static.modules import StaticModules


class StaticMolkvMixer(nn.Module):
    """The mixer g_t * softmax(q_t . kk / sqrt(dk) + mask) v.

    Keys, values and scores have a first dimension of 1 for NNAPI, which supports a product of two computed tensors only
    with three or more dimensions.
    """

    def __init__(self, config: MolkvConfig, modules: StaticModules) -> None:
        super().__init__()
        self.config, self.length, self.constant = config, modules.length, modules.constant
        self.query_proj = modules.linear(config.hidden_size, config.expert_key_size)
        self.query_norm = modules.norm(config.expert_key_size) if config.expert_qk_norm else None
        self.gate = modules.small_linear(config.hidden_size, 1) if config.expert_gate == "sigmoid" else None

    def forward(self, op: OpBuilder, x: Value, values: Mapping[str, Value], layer: int) -> tuple[Value, Value]:
        """Return the output [T, d] for x [T, d], and the masked scores [1, T, R*N], where R = T + W - 1."""
        key, value = values[f"expert_key.{layer}"], values[f"expert_value.{layer}"]  # [1, R*N, dk or d]
        size = self.config.expert_key_size
        query = self.query_proj(op, x)
        if self.query_norm is not None:
            query, _ = self.query_norm(op, query)
        if self.config.expert_rope:
            rotary = Rotary(values["expert_rotary_cos"], values["expert_rotary_sin"])
            query = rotary(op, query, size, last=1)
        query = op.Reshape(op.Mul(query, self.constant(op, size**-0.5)), [1, self.length, size])
        scores = op.Add(op.MatMul(query, op.Transpose(key, perm=[0, 2, 1])), values["expert_mask"])
        mixed = op.MatMul(op.Softmax(scores, axis=-1), value)
        out = op.Reshape(mixed, [self.length, self.config.hidden_size])
        return out if self.gate is None else op.Mul(op.Sigmoid(self.gate(op, x)), out), scores
