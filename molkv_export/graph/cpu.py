"""Modules of the cpu profile: ONNX Runtime's own operators, any batch size, any length."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig, rotary_tables
from molkv_export.graph.feed_forward import FeedForward, GatedFeedForward
from molkv_export.graph.linear import DenseFormat, Linear

# Attributes of GroupQueryAttention: one scale for each channel of each head, fixed at export.
INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension with ONNX Runtime's operators; the addition before the norm can be fused."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([size])
        self.eps = eps

    def forward(self, op: OpBuilder, x: Value, skip: Value | None = None) -> tuple[Value, Value]:
        """Return the norm of x + skip, and x + skip. If `skip` is None, return the norm of x, and x."""
        if skip is None:
            # ONNX does not define this operator, but ONNX Runtime registers it in the default domain.
            return op.SimplifiedLayerNormalization(x, self.weight, axis=-1, epsilon=self.eps, stash_type=1), x
        normed, _, _, total = op.SkipSimplifiedLayerNormalization(
            x, skip, self.weight, epsilon=self.eps, _domain="com.microsoft", _version=1, _outputs=4
        )
        return normed, total


class RotaryCache:
    """Initializers of the graph with the cos and sin of all positions, one pair for each size and scale."""

    def __init__(self, max_positions: int, theta: float, partial_rotary_factor: float = 1.0, *, name: str = "") -> None:
        """Create the initializers when they are used; `name` is needed if a graph has several rotations."""
        self.max_positions = max_positions
        self.theta, self.partial_rotary_factor = theta, partial_rotary_factor
        self._prefix = f"{name}." if name else ""
        self._values: dict[str, tuple[ir.Value, ir.Value]] = {}

    def tables(self, op: OpBuilder, size: int, scale: float = 1.0) -> tuple[ir.Value, ir.Value]:
        """Return cos and sin of all positions, each float32 [max_positions, size / 2], times `scale`."""
        name = self._prefix + (str(size) if scale == 1 else f"{size}.scaled")
        if name not in self._values:
            cos, sin = rotary_tables(np.arange(self.max_positions), size, self.theta, self.partial_rotary_factor)
            root = op.builder.root
            cos, sin = (np.multiply(table, scale, dtype=np.float32) for table in (cos, sin))
            self._values[name] = (
                root.initializer(ir.tensor(cos, name=f"rotary_cos.{name}"), qualify=False),
                root.initializer(ir.tensor(sin, name=f"rotary_sin.{name}"), qualify=False),
            )
        return self._values[name]


class KVCache(NamedTuple):
    """One layer's cache [B, Hkv, max_length, head_dim], float32 or int8, and lengths for GroupQueryAttention."""

    past_key: Value
    past_value: Value
    seqlens_k: Value  # int32 [B]: number of tokens in the cache after this step, minus 1
    total_sequence_length: Value  # int32 scalar: number of tokens of the longest sequence in the cache after this step


class Attention(nn.Module):
    """Attention with ONNX Runtime's GroupQueryAttention, which takes query, key and value packed, and rotates them."""

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
        """Attend from x [B, T, d]; return the output [B, T, d] and the present key and value."""
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
            **({} if self.k_scale is None else INT8_CACHE),
            _domain="com.microsoft",
            _version=1,
            _outputs=3,
        )
        return self.o_proj(op, out), present_key, present_value


class CpuModules:
    """The implementation of `Modules` for the cpu profile."""

    dtype = ir.DataType.FLOAT

    def __init__(self, config: LookupExpertConfig, dense: DenseFormat) -> None:
        self._config, self._dense = config, dense
        self.rotary = RotaryCache(config.max_position_embeddings, config.rope_theta)
        self.linear = dense.linear
        self.head = dense.head
        self.window_dtype = dense.window_dtype
        self.small_linear = Linear

    def norm(self, size: int) -> RMSNorm:
        """Create an RMSNorm that can be fused with the addition before it."""
        return RMSNorm(size, self._config.rms_norm_eps)

    def attention(self) -> Attention:
        """Create the attention of one layer."""
        return Attention(self._config, self._dense, self.rotary)

    def feed_forward(self) -> FeedForward | GatedFeedForward:
        """Create the feed-forward network of one layer."""
        if self._config.hidden_act == "gelu":
            return FeedForward(self._config, self.linear, _gelu)
        return GatedFeedForward(self._config, self.linear)


def _gelu(op: OpBuilder, x: Value) -> Value:
    return op.Gelu(x, approximate="none")
