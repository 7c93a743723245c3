"""How a MoLKV layer attends to the key-value experts in its window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MolkvConfig
from molkv_export.graph.cpu import CpuModules


class MolkvInputs(NamedTuple):
    """What the host prepares for one layer; blocks * C = B * T."""

    key: Value  # [blocks, R*N, dk], rotated by the host
    value: Value  # [blocks, R*N, d]
    mask: Value  # [blocks, C, R*N]: 0 where position C sees the expert, -inf where not
    position_ids: Value  # int64 [B, T]


class MolkvMixer(nn.Module):
    """g_t * softmax(q_t . kk / sqrt(dk) + mask) v; the graph neither knows nor cares in which order experts stand."""

    def __init__(self, config: MolkvConfig, modules: CpuModules) -> None:
        super().__init__()
        self.config = config
        self.rotary = modules.rotary
        self.query_proj = modules.linear(config.hidden_size, config.expert_key_size)
        self.query_norm = modules.norm(config.expert_key_size) if config.expert_qk_norm else None
        self.gate = modules.small_linear(config.hidden_size, 1) if config.expert_gate == "sigmoid" else None

    def forward(self, op: OpBuilder, x: Value, experts: MolkvInputs) -> tuple[Value, Value]:
        """Attend from x [B, T, d]; gives [B, T, d] and the masked scores [blocks, C, R*N]."""
        query = self.query_proj(op, x)
        if self.query_norm is not None:
            query, _ = self.query_norm(op, query)
        scale = self.config.expert_key_size**-0.5
        if self.config.expert_rope:
            # The rotation scales, too, which saves an operator in every layer.
            cos, sin = self.rotary.tables(op, self.config.expert_key_size, scale)
            query = op.RotaryEmbedding(
                query, experts.position_ids, cos, sin, num_heads=1, _domain="com.microsoft", _version=1
            )
        else:
            query = op.Mul(query, scale)
        # [B, T, dk] -> [blocks, C, dk]: the mask's first two dimensions are the blocks.
        query = op.Reshape(query, _shape(op, experts.mask, self.config.expert_key_size))
        scores = op.Add(op.MatMul(query, op.Transpose(experts.key, perm=[0, 2, 1])), experts.mask)
        mixed = op.MatMul(op.Softmax(scores, axis=-1), experts.value)
        out = op.Reshape(mixed, _shape(op, experts.position_ids, self.config.hidden_size))
        return out if self.gate is None else op.Mul(op.Sigmoid(self.gate(op, x)), out), scores


def _shape(op: OpBuilder, value: Value, size: int) -> Value:
    """Give the first two dimensions of an input of the graph, and a size: the same in all layers, so computed once."""
    return op.Concat(op.Shape(value, start=0, end=2), op.Constant(value_ints=[size]), axis=0)


class MolkvExperts:
    """The `Experts` of MoLKV in the graph of the cpu profile."""

    def __init__(self, config: MolkvConfig, modules: CpuModules) -> None:
        self._config, self._modules = config, modules

    def mixer(self) -> MolkvMixer:
        """Make the mixer of one layer."""
        return MolkvMixer(self._config, self._modules)

    def inputs(self, values: Mapping[str, Value], layer: int) -> MolkvInputs:
        """Choose the inputs of a layer."""
        key, value = values[f"expert_key.{layer}"], values[f"expert_value.{layer}"]
        return MolkvInputs(key, value, values["expert_mask"], values["position_ids"])
