"""Causal self-attention with grouped key-value heads, over a KV cache that the host owns."""

from __future__ import annotations

from typing import NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.rope import RotaryCache

# One scale for each channel of each head, fixed when the model is exported.
_INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class KVCache(NamedTuple):
    """One layer's cache [B, Hkv, max_length, head_dim], float32 or int8, and the lengths GroupQueryAttention needs."""

    past_key: Value
    past_value: Value
    seqlens_k: Value  # int32 [B]: tokens in the cache after this step, minus 1
    total_sequence_length: Value  # int32 scalar: the longest of them, not reduced by 1


class Attention(nn.Module):
    """ONNX Runtime's GroupQueryAttention with packed query, key and value, which also rotates them."""

    def __init__(self, config: LookupExpertConfig, dense: DenseFormat, rotary: RotaryCache) -> None:
        super().__init__()
        self.config = config
        self.rotary = rotary
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.qkv_proj = dense.linear(config.hidden_size, heads * config.head_dim)
        self.k_scale = self.v_scale = None
        if dense.kv_dtype == "int8":
            shape = [1, config.num_key_value_heads, 1, config.head_dim]
            self.k_scale, self.v_scale = nn.Parameter(shape), nn.Parameter(shape)
        self.o_proj = dense.linear(config.num_attention_heads * config.head_dim, config.hidden_size)

    def forward(self, op: OpBuilder, x: Value, cache: KVCache) -> tuple[Value, Value, Value]:
        """Attend from x [B, T, d]; give the output [B, T, d] and the present key and value."""
        out, present_key, present_value = op.GroupQueryAttention(
            self.qkv_proj(op, x),
            None,
            None,
            cache.past_key,
            cache.past_value,
            cache.seqlens_k,
            cache.total_sequence_length,
            *self.rotary.tables(op, self.config.head_dim),
            *(() if self.k_scale is None else (None, None, None, self.k_scale, self.v_scale)),
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=1,
            **({} if self.k_scale is None else _INT8_CACHE),
            _domain="com.microsoft",
            _version=1,
            _outputs=3,
        )
        return self.o_proj(op, out), present_key, present_value
