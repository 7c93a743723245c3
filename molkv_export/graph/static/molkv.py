"""How a MoLKV layer attends to the key-value experts in its window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MolkvConfig
from molkv_export.graph.static.layers import Rotary
from molkv_export.graph.static.modules import StaticModules


class StaticMolkvInputs(NamedTuple):
    """What the host prepares; R = T + W - 1 positions, of which each of the T sees W."""

    key: Value  # [1, R*N, dk], rotated by the host
    value: Value  # [1, R*N, d]
    mask: Value  # [1, T, R*N]: 0 where a position sees the expert, HIDDEN where not
    rotary: Rotary | None


class StaticMolkvMixer(nn.Module):
    """g_t * softmax(q_t . kk / sqrt(dk) + mask) v.

    The first dimension, 1, is there for NNAPI, which takes no product of two matrices that are both computed.
    """

    def __init__(self, config: MolkvConfig, modules: StaticModules) -> None:
        super().__init__()
        self.config, self.length, self.constant = config, modules.length, modules.constant
        self.query_proj = modules.linear(config.hidden_size, config.expert_key_size)
        self.query_norm = modules.norm(config.expert_key_size) if config.expert_qk_norm else None
        self.gate = modules.small_linear(config.hidden_size, 1) if config.expert_gate == "sigmoid" else None

    def forward(self, op: OpBuilder, x: Value, experts: StaticMolkvInputs) -> tuple[Value, Value]:
        """Attend from x [T, d]; gives [T, d] and the masked scores [1, T, R*N]."""
        size = self.config.expert_key_size
        query = self.query_proj(op, x)
        if self.query_norm is not None:
            query, _ = self.query_norm(op, query)
        if experts.rotary is not None:
            query = experts.rotary(op, query, size, last=1)
        query = op.Reshape(op.Mul(query, self.constant(op, size**-0.5)), [1, self.length, size])
        scores = op.Add(op.MatMul(query, op.Transpose(experts.key, perm=[0, 2, 1])), experts.mask)
        mixed = op.MatMul(op.Softmax(scores, axis=-1), experts.value)
        out = op.Reshape(mixed, [self.length, self.config.hidden_size])
        return out if self.gate is None else op.Mul(op.Sigmoid(self.gate(op, x)), out), scores


class StaticMolkvExperts:
    """The `Experts` of MoLKV in static graphs."""

    def __init__(self, config: MolkvConfig, modules: StaticModules) -> None:
        self._config, self._modules = config, modules

    def mixer(self) -> StaticMolkvMixer:
        """Make the mixer of one layer."""
        return StaticMolkvMixer(self._config, self._modules)

    def inputs(self, values: Mapping[str, Value], layer: int) -> StaticMolkvInputs:
        """Choose the inputs of a layer."""
        rotary = None
        if self._config.expert_rope:
            rotary = Rotary(values["expert_rotary_cos"], values["expert_rotary_sin"])
        return StaticMolkvInputs(
            values[f"expert_key.{layer}"], values[f"expert_value.{layer}"], values["expert_mask"], rotary
        )
