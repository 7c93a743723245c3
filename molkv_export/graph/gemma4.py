"""The dense graph of Gemma 4 text models, profile cpu; `modeling/gemma4.py` has the equations."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import Gemma4Config, graph_interface
from molkv_export.graph.build import BuiltGraph, Frame, check_head_size
from molkv_export.graph.constants import FLOAT
from molkv_export.graph.cpu import INT8_CACHE, RMSNorm, RotaryCache
from molkv_export.graph.linear import DenseFormat
from molkv_export.modeling import tap_name

_END = [2**31 - 1]


class KeysAndValues(NamedTuple):
    """New keys and values of a layer, and its cache after this call, which layers that share them need."""

    new: Value  # [B, T, 2 * Hkv * size]: keys and values side by side; GroupQueryAttention rotates the keys
    present_key: Value
    present_value: Value
    scales: tuple[Value | None, ...]  # the last inputs of GroupQueryAttention: the scales of an int8 cache


class Kept:
    """The final positions of a call whose logits are wanted, at least one.

    Only the layers before the first one that shares a cache must compute every position: they fill the caches.
    """

    def __init__(self, op: OpBuilder, x: Value, logits_to_keep: Value) -> None:
        """Choose the last `logits_to_keep` (int64 [1]) of the positions of x [B, T, d]."""
        length = op.Shape(x, start=1, end=2)
        # GroupQueryAttention refuses calls without positions.
        count = op.Max(logits_to_keep, [1])
        self._start = op.Sub(length, count)
        self._first_logit = op.Sub(count, logits_to_keep)

    def __call__(self, op: OpBuilder, x: Value, size: int) -> Value:
        """Return the chosen positions of x [B, T, size]."""
        # ONNX Runtime 1.30 needs the size to infer the shape of GroupQueryAttention's output, and Slice forgets it.
        return op.Reshape(op.Slice(x, self._start, _END, [1]), [0, 0, size])

    def for_logits(self, op: OpBuilder, x: Value) -> Value:
        """Return the positions of chosen positions x [B, n, d] whose logits are wanted."""
        return op.Slice(x, self._first_logit, _END, [1])


class Gemma4Modules:
    """The parts of the graph that depend on the options: products and the KV cache; and tables of cos and sin."""

    def __init__(self, config: Gemma4Config, dense: DenseFormat) -> None:
        self.config, self.linear, self.head, self.kv_dtype = config, dense.linear, dense.head, dense.kv_dtype
        length = config.max_position_embeddings
        self.sliding = RotaryCache(length, config.sliding_rope_theta, name="sliding")
        self.full = RotaryCache(length, config.full_rope_theta, config.partial_rotary_factor, name="full")

    def norm(self) -> RMSNorm:
        """Create an RMSNorm of the residual stream's size."""
        return RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)


class HeadNorm(nn.Module):
    """RMSNorm of each head, with a weight or without one."""

    def __init__(self, size: int, eps: float, *, has_weight: bool = True) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter([size]) if has_weight else None

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Normalize x [B, T, heads * size]."""
        weight = _ones(op, self.size) if self.weight is None else self.weight
        heads = op.Reshape(x, [0, 0, -1, self.size])
        normed = op.SimplifiedLayerNormalization(heads, weight, axis=-1, epsilon=self.eps, stash_type=1)
        return op.Reshape(normed, [0, 0, -1])


def _ones(op: OpBuilder, size: int) -> Value:
    """Return the graph's initializer of ones [size]."""
    root, name = op.builder.root, f"ones.{size}"
    known: Value | None = root.graph.initializers.get(name)
    return known or root.initializer(ir.tensor(np.ones(size, np.float32), name=name), qualify=False)


class Attention(nn.Module):
    """Attention with ONNX Runtime's GroupQueryAttention, over a window or over all positions.

    A layer that shares keys and values gets the new ones of its source again, and writes them to the same place of the
    source's cache. The host binds both outputs to the same memory, so no cache is copied.
    """

    def __init__(self, modules: Gemma4Modules, layer: int) -> None:
        super().__init__()
        config = modules.config
        self.config, self.size, self.is_sliding = config, config.head_size(layer), config.is_sliding(layer)
        self.rotary = modules.sliding if self.is_sliding else modules.full
        self.query_size = config.num_attention_heads * self.size
        self.key_size = config.num_key_value_heads * self.size
        self.q_norm = HeadNorm(self.size, config.rms_norm_eps)
        self.shares = layer in config.shared_kv_caches()
        self.scales: tuple[Value | None, ...] = ()
        if self.shares:
            self.q_proj = modules.linear(config.hidden_size, self.query_size)
        else:
            self.qkv_proj = modules.linear(config.hidden_size, self.query_size + 2 * self.key_size)
            self.k_norm = HeadNorm(self.size, config.rms_norm_eps)
            self.v_norm = HeadNorm(self.size, config.rms_norm_eps, has_weight=False)
            if modules.kv_dtype == "int8":
                shape = [1, config.num_key_value_heads, 1, self.size]
                self.k_scale, self.v_scale = nn.Parameter(shape), nn.Parameter(shape)
                self.scales = (None, None, None, self.k_scale, self.v_scale)
        self.o_proj = modules.linear(self.query_size, config.hidden_size)

    def forward(
        self, op: OpBuilder, x: Value, values: Mapping[str, Value], layer: int, source: KeysAndValues | None
    ) -> tuple[Value, KeysAndValues]:
        """Attend from x [B, T, d]; return the output [B, T, d], and the keys and values that were used.

        Args:
            op: The builder of the graph.
            x: The normed residual stream.
            values: The inputs of the graph by name.
            layer: The index of this layer.
            source: For a layer that shares keys and values: those of its source, for the positions of x.
        """
        if source is None:
            query, new = self._products(op, x)
            past, scales = [values[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value")], self.scales
        else:
            query, (new, *past, scales) = self.q_proj(op, x), source
        out, present_key, present_value = op.GroupQueryAttention(
            op.Concat(self.q_norm(op, query), new, axis=-1),
            None,
            None,
            *past,
            values["seqlens_k"],
            values["total_sequence_length"],
            *self.rotary.tables(op, self.size),
            *scales,
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=1,
            scale=1.0,
            **({"local_window_size": self.config.sliding_window} if self.is_sliding else {}),
            **(INT8_CACHE if scales else {}),
            _domain="com.microsoft",
            _version=1,
            _outputs=3,
        )
        return self.o_proj(op, out), KeysAndValues(new, present_key, present_value, scales)

    def _products(self, op: OpBuilder, x: Value) -> tuple[Value, Value]:
        packed = self.qkv_proj(op, x)
        ends = [0, self.query_size, self.query_size + self.key_size, self.query_size + 2 * self.key_size]
        query, key, value = (op.Slice(packed, [start], [end], [2]) for start, end in pairwise(ends))
        return query, op.Concat(self.k_norm(op, key), self.v_norm(op, value), axis=-1)


class FeedForward(nn.Module):
    """The network down(gelu(gate(x)) * up(x))."""

    def __init__(self, modules: Gemma4Modules, layer: int) -> None:
        super().__init__()
        hidden, size = modules.config.hidden_size, modules.config.feed_forward_size(layer)
        self.gate_proj, self.up_proj = modules.linear(hidden, size), modules.linear(hidden, size)
        self.down_proj = modules.linear(size, hidden)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., d] to [..., d]."""
        gate = op.Gelu(self.gate_proj(op, x), approximate="tanh")
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class DecoderLayer(nn.Module):
    """One layer: attention, feed-forward network and per-layer embedding, each with a norm before and after it."""

    def __init__(self, modules: Gemma4Modules, layer: int) -> None:
        super().__init__()
        self.layer, size = layer, modules.config.hidden_size_per_layer_input
        self.input_layernorm, self.post_attention_layernorm = modules.norm(), modules.norm()
        self.self_attn = Attention(modules, layer)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = modules.norm(), modules.norm()
        self.mlp = FeedForward(modules, layer)
        self.per_layer_input_gate = modules.linear(modules.config.hidden_size, size)
        self.per_layer_projection = modules.linear(size, modules.config.hidden_size)
        self.post_per_layer_input_norm = modules.norm()
        self.layer_scalar = nn.Parameter([1])

    def forward(
        self,
        op: OpBuilder,
        x: Value,
        per_layer_input: Value,
        values: Mapping[str, Value],
        source: KeysAndValues | None,
    ) -> tuple[Value, KeysAndValues]:
        """Return the residual stream [B, T, d] after this layer, and the layer's keys and values.

        Args:
            op: The builder of the graph.
            x: The residual stream before this layer, [B, T, d].
            per_layer_input: p of this layer, [B, T, P].
            values: The inputs of the graph by name.
            source: As in `Attention`.
        """
        normed, _ = self.input_layernorm(op, x)
        attended, kept = self.self_attn(op, normed, values, self.layer, source)
        post_attention, _ = self.post_attention_layernorm(op, attended)
        n, a = self.pre_feedforward_layernorm(op, x, post_attention)
        feed_forward = self.mlp(op, n)
        post_feed_forward, _ = self.post_feedforward_layernorm(op, feed_forward)
        b = op.Add(a, post_feed_forward)
        gate = op.Gelu(self.per_layer_input_gate(op, b), approximate="tanh")
        gated = op.Mul(gate, per_layer_input)
        projected = self.per_layer_projection(op, gated)
        post_projection, _ = self.post_per_layer_input_norm(op, projected)
        taps = {
            "input_norm": normed,
            "attention": attended,
            "post_attention_norm": post_attention,
            "feed_forward": feed_forward,
            "post_feed_forward_norm": post_feed_forward,
            "gated_per_layer_input": gated,
            "per_layer_projection": projected,
        }
        for tap, value in taps.items():
            value.name = tap_name(tap, self.layer)
        return op.Mul(op.Add(b, post_projection), self.layer_scalar), kept


class Decoder(nn.Module):
    """The projection of the input to all layers, the layers, and the final norm."""

    def __init__(self, modules: Gemma4Modules) -> None:
        super().__init__()
        self.config = config = modules.config
        layers, self.size = config.num_hidden_layers, config.hidden_size_per_layer_input
        self.per_layer_model_projection = modules.linear(config.hidden_size, layers * self.size)
        self.per_layer_projection_norm = HeadNorm(self.size, config.rms_norm_eps)
        self.layers = nn.ModuleList([DecoderLayer(modules, layer) for layer in range(layers)])
        self.norm = modules.norm()

    def forward(self, op: OpBuilder, values: Mapping[str, Value]) -> tuple[Value, list[KeysAndValues]]:
        """Return the final norm's output for the positions whose logits are wanted, and the caches of all layers."""
        hidden_size = self.config.hidden_size
        x = op.Mul(values["inputs_embeds"], FLOAT(op, hidden_size**0.5))
        x.name = tap_name("scaled_embedding", 0)
        chosen, sources = Kept(op, x, values["logits_to_keep"]), self.config.shared_kv_caches()
        projected = self._projected(op, x)
        every: list[KeysAndValues] = []
        used: dict[int, KeysAndValues] = {}
        for index, layer in enumerate(self.layers):
            vector = values[f"expert_value.{index}"]
            if index == min(sources, default=None):
                x, projected = chosen(op, x, hidden_size), chosen(op, projected, len(self.layers) * self.size)
                used = {
                    source: self._chosen(op, chosen, every[source], source) for source in sorted(set(sources.values()))
                }
            if index in sources:
                vector = chosen(op, vector, self.size)
            per_layer_input = self._per_layer_input(op, projected, vector, index)
            if index > 0:
                x.name = tap_name("residual", index)
            x, kept = layer(op, x, per_layer_input, values, used.get(sources.get(index, -1)))
            every.append(kept)
        x = chosen.for_logits(op, x if sources else chosen(op, x, hidden_size))
        x.name = tap_name("residual")
        normed, _ = self.norm(op, x)
        normed.name = tap_name("norm")
        return normed, every

    def _chosen(self, op: OpBuilder, chosen: Kept, keys_and_values: KeysAndValues, layer: int) -> KeysAndValues:
        """Return the new keys and values of a layer for the chosen positions."""
        size = 2 * self.config.num_key_value_heads * self.config.head_size(layer)
        return keys_and_values._replace(new=chosen(op, keys_and_values.new, size))

    def _projected(self, op: OpBuilder, x: Value) -> Value:
        """Return the normed projection of the input of layer 0 to all layers, [B, T, L * P]."""
        projected = self.per_layer_model_projection(op, x)
        projected.name = tap_name("per_layer_model_projection", 0)
        scaled = op.Mul(projected, FLOAT(op, self.config.hidden_size**-0.5))
        return self.per_layer_projection_norm(op, scaled)

    def _per_layer_input(self, op: OpBuilder, projected: Value, embedding: Value, layer: int) -> Value:
        """Return p of a layer, [B, T, P], from the projections of all layers and the layer's per-layer embedding."""
        own = op.Slice(projected, [layer * self.size], [(layer + 1) * self.size], [2])
        total = op.Add(own, op.Mul(embedding, FLOAT(op, self.size**0.5)))
        return op.Mul(total, FLOAT(op, 2**-0.5))


class Gemma4ForCausalLM(nn.Module):
    """The dense graph; it computes logits from embeddings and per-layer embeddings."""

    def __init__(self, modules: Gemma4Modules) -> None:
        super().__init__()
        self.cap = modules.config.final_logit_softcapping
        self.model = Decoder(modules)
        self.lm_head = modules.head(modules.config.hidden_size, modules.config.vocab_size)

    def forward(self, op: OpBuilder, values: Mapping[str, Value]) -> list[Value]:
        """Return the logits [B, logits_to_keep, vocab_size], and the present key and value of every layer."""
        hidden, caches = self.model(op, values)
        logits = self.lm_head(op, hidden)
        if self.cap:
            cap = FLOAT(op, self.cap)
            logits = op.Mul(op.Tanh(op.Div(logits, cap)), cap)
        return [logits, *(value for cache in caches for value in (cache.present_key, cache.present_value))]


def build_gemma4_graph(config: Gemma4Config, dense: DenseFormat) -> BuiltGraph:
    """Build the dense graph of the cpu profile.

    Raises:
        ConfigError: ONNX Runtime's attention operator does not support this model.
    """
    for name in ("head_dim", "global_head_dim"):
        check_head_size(name, getattr(config, name))
    frame = Frame(*graph_interface(config, dense.kv_dtype))
    model = Gemma4ForCausalLM(Gemma4Modules(config, dense))
    return frame.finish(model, model(frame.op, frame.values))
