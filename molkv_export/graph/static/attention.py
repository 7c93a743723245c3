"""Causal self-attention. The host passes the KV cache and the mask as inputs."""

from __future__ import annotations

from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.constants import Constants
from molkv_export.graph.linear import Linear
from molkv_export.graph.static.layers import Rotary


class StaticCache(NamedTuple):
    """One layer's KV cache, and the mask and rotary tables that all layers share."""

    past_key: Value  # [Hkv, head_dim, S]: transposed, so that no step has to transpose the keys
    past_value: Value  # [Hkv, S, head_dim]
    mask: Value  # [1, G*T, S+T]: 0 where a position sees an entry of the cache or a new position, else HIDDEN
    rotary: Rotary


class _Heads(nn.Module):
    """Base class that computes query, key and value heads of the new positions."""

    def __init__(self, config: LookupExpertConfig, length: int, qkv_proj: nn.Module) -> None:
        super().__init__()
        self.config, self.length = config, length
        self.qkv_proj = qkv_proj

    def _heads(self, op: OpBuilder, x: Value, rotary: Rotary) -> tuple[Value, Value, Value]:
        """Return rotated queries and keys [T, H + Hkv, size], the keys [Hkv, size, T], and values [Hkv, T, size]."""
        query, key_value, size = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        heads = op.Reshape(self.qkv_proj(op, x), [self.length, query + 2 * key_value, size])
        turned = rotary(op, op.Slice(heads, [0], [query + key_value], [1], [1]), size, last=2)
        key = op.Transpose(op.Slice(turned, [query], [query + key_value], [1], [1]), perm=[1, 2, 0])
        value = op.Slice(heads, [query + key_value], [query + 2 * key_value], [1], [1])
        return turned, key, op.Transpose(value, perm=[1, 0, 2])


class KeysAndValues(_Heads):
    """The part of attention that computes the keys and values of new positions for the KV cache, but no output."""

    def forward(self, op: OpBuilder, x: Value, rotary: Rotary) -> tuple[Value, Value]:
        """Return the keys [Hkv, head_dim, T] and values [Hkv, T, head_dim] of x [T, d]."""
        _, key, value = self._heads(op, x, rotary)
        return key, value


class StaticAttention(_Heads):
    """Grouped-query attention to the cache and to the new positions; the scores of both share one Softmax.

    The G query heads of a group are computed as G*T rows of one head, since no compiler broadcasts a product over
    heads. The cache is not concatenated with the new keys and values, since that would copy the cache.
    """

    def __init__(
        self, config: LookupExpertConfig, length: int, constant: Constants, qkv_proj: nn.Module, o_proj: Linear
    ) -> None:
        super().__init__(config, length, qkv_proj)
        self.constant = constant
        self.o_proj = o_proj

    def forward(self, op: OpBuilder, x: Value, cache: StaticCache) -> tuple[Value, Value, Value]:
        """Return the output [T, d] for x [T, d], and the new keys and values."""
        config, length = self.config, self.length
        groups, size = config.num_key_value_heads, config.head_dim
        heads = config.num_attention_heads // groups
        turned, key, value = self._heads(op, x, cache.rotary)
        query = op.Mul(op.Slice(turned, [0], [config.num_attention_heads], [1], [1]), self.constant(op, size**-0.5))
        query = op.Transpose(op.Reshape(query, [length, groups, heads, size]), perm=[1, 2, 0, 3])
        query = op.Reshape(query, [groups, heads * length, size])
        # The mask is added after the Concat: QNN's compiler drops a constant mask that is added before the Concat.
        scores = op.Concat(op.MatMul(query, cache.past_key), op.MatMul(query, key), axis=-1)
        weights = op.Softmax(op.Add(scores, cache.mask), axis=-1)
        context = config.max_position_embeddings
        out = op.Add(
            op.MatMul(op.Slice(weights, [0], [context], [2], [1]), cache.past_value),
            op.MatMul(op.Slice(weights, [context], [context + length], [2], [1]), value),
        )
        out = op.Transpose(op.Reshape(out, [groups, heads, length, size]), perm=[2, 0, 1, 3])
        return self.o_proj(op, op.Reshape(out, [length, groups * heads * size])), key, value
