"""The MoLKV mixer of the cpu profile: attention to the key-value experts in the window."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import MolkvConfig
from molkv_export.graph.constants import FLOAT
from molkv_export.graph.cpu import CpuModules
from molkv_export.graph.linear import int8_product


class MolkvMixer(nn.Module):
    """The mixer g_t * softmax(q_t . kk / sqrt(dk) + mask) v. The mask's columns are in the order of the experts."""

    def __init__(self, config: MolkvConfig, modules: CpuModules) -> None:
        super().__init__()
        self.config, self.window_dtype = config, modules.window_dtype
        self.rotary = modules.rotary
        self.query_proj = modules.linear(config.hidden_size, config.expert_key_size)
        self.query_norm = modules.norm(config.expert_key_size) if config.expert_qk_norm else None
        self.gate = modules.small_linear(config.hidden_size, 1) if config.expert_gate == "sigmoid" else None

    def forward(self, op: OpBuilder, x: Value, values: Mapping[str, Value], layer: int) -> tuple[Value, Value]:
        """Return the output [B, T, d] for x [B, T, d], and the masked scores [blocks, C, R*N]; blocks * C = B * T."""
        key, value = values[f"expert_key.{layer}"], values[f"expert_value.{layer}"]  # [blocks, R*N, dk or d]
        mask, position_ids = values["expert_mask"], values["position_ids"]  # [blocks, C, R*N], [B, T]
        query = self.query_proj(op, x)
        if self.query_norm is not None:
            query, _ = self.query_norm(op, query)
        scale = self.config.expert_key_size**-0.5
        if self.config.expert_rope:
            # The scale is part of the rotation's tables, which saves an operator in every layer.
            cos, sin = self.rotary.tables(op, self.config.expert_key_size, scale)
            query = op.RotaryEmbedding(query, position_ids, cos, sin, num_heads=1, _domain="com.microsoft", _version=1)
        else:
            query = op.Mul(query, scale)
        # [B, T, dk] -> [blocks, C, dk]: the mask's first two dimensions are the blocks.
        query = op.Reshape(query, _shape(op, mask, self.config.expert_key_size))
        scores = op.Add(op.MatMul(query, op.Transpose(key, perm=[0, 2, 1])), mask)
        weights = op.Softmax(scores, axis=-1)
        if self.window_dtype == "int8":
            # Each row of the codes has a scale. `int8_product` cannot apply scales of rows, so the weights are
            # multiplied by the scales.
            weights = op.Mul(weights, values[f"expert_value_scale.{layer}"])  # [blocks, 1, R*N]
            mixed = int8_product(op, weights, value, FLOAT(op, 1.0), is_negative=False)
        else:
            mixed = op.MatMul(weights, value)
        out = op.Reshape(mixed, _shape(op, position_ids, self.config.hidden_size))
        return out if self.gate is None else op.Mul(op.Sigmoid(self.gate(op, x)), out), scores


def _shape(op: OpBuilder, value: Value, size: int) -> Value:
    """Return the first two dimensions of an input, followed by a size.

    All layers have the same nodes for this shape, and ONNX Runtime merges them.
    """
    return op.Concat(op.Shape(value, start=0, end=2), op.Constant(value_ints=[size]), axis=0)
