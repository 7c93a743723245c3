"""Gemma 4 E2B and E4B, text only. The equations follow from the model's code in transformers 5.24.

R is RMSNorm, and every R below has weights of its own. E and P are the embedding and the per-layer embedding of the
position's token, d is the hidden size, and p has one vector for each layer:

    x0 = sqrt(d) E
    p  = (R(W x0 / sqrt(d)) + sqrt(len(P)) P) / sqrt(2)
    a  = x + R(Attention(R(x)));   b = a + R(FFN(R(a)))
    y  = (b + R(Wu(gelu(Wg b) * p[layer]))) * s
    logits = c tanh(H R(x) / c)

Wg reads b without a norm, s is the layer's scalar, H is the LM head and c is `final_logit_softcapping`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from molkv_bundle import Gemma4Config
from molkv_export.modeling.layers import RMSNorm, rotate
from molkv_export.modeling.reference import ExactRecords, ExpertTables, Form, ReferenceModel, Tap, computed, given

gelu = partial(nn.functional.gelu, approximate="tanh")


class PlainRMSNorm(nn.Module):
    """RMSNorm without a weight."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., size]."""
        return nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps)


class KeysAndValues(NamedTuple):
    """The keys and values of one layer for all positions, each [B, Hkv, T, size]; keys are rotated."""

    keys: Tensor
    values: Tensor


class Scale(nn.Module):
    """Multiplication with a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x."""
        return x * self.factor


class Attention(nn.Module):
    """Causal grouped-query attention, over a window or over all positions.

    Queries, keys and values are normed, and scores are not scaled. A layer that shares keys and values has no products
    for them.
    """

    def __init__(self, config: Gemma4Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.head_dim = config, layer, config.head_size(layer)
        query_size = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        if layer not in config.shared_kv_caches():
            size = config.num_key_value_heads * self.head_dim
            self.k_proj = nn.Linear(config.hidden_size, size, bias=False)
            self.v_proj = nn.Linear(config.hidden_size, size, bias=False)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.v_norm = PlainRMSNorm(config.rms_norm_eps)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def keys_and_values(self, x: Tensor) -> KeysAndValues:
        """Return the keys and values of x [B, T, d]."""
        keys = self.k_norm(self._heads(self.k_proj(x)))
        values = self.v_norm(self._heads(self.v_proj(x)))
        return KeysAndValues(self._rotated(keys).transpose(1, 2), values.transpose(1, 2))

    def forward(self, x: Tensor, kept: KeysAndValues) -> Tensor:
        """Attend from every position of x [B, T, d] to keys and values of it and of positions before it."""
        query = self._rotated(self.q_norm(self._heads(self.q_proj(x)))).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(
            query, *kept, attn_mask=self._mask(x), scale=1.0, enable_gqa=True
        )
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:  # [B, T, H*size] -> [B, T, H, size]
        return x.view(*x.shape[:-1], -1, self.head_dim)

    def _rotated(self, heads: Tensor) -> Tensor:
        config, positions = self.config, torch.arange(heads.shape[1], device=heads.device)[:, None]
        if config.is_sliding(self.layer):
            return rotate(heads, positions, config.sliding_rope_theta)
        return rotate(heads, positions, config.full_rope_theta, config.partial_rotary_factor)

    def _mask(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        distance = positions[:, None] - positions
        reach = self.config.sliding_window if self.config.is_sliding(self.layer) else x.shape[1]
        return (distance >= 0) & (distance < reach)


class FeedForward(nn.Module):
    """The network down(gelu(gate(x)) * up(x)), with the tanh form of GELU."""

    def __init__(self, config: Gemma4Config, layer: int) -> None:
        super().__init__()
        size = config.feed_forward_size(layer)
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., d]."""
        out: Tensor = self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """One layer: attention, feed-forward network and per-layer embedding, each with a norm before and after it."""

    def __init__(self, config: Gemma4Config, layer: int) -> None:
        super().__init__()
        norm = partial(RMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm, self.self_attn, self.post_attention_layernorm = norm(), Attention(config, layer), norm()
        self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm = (
            norm(),
            FeedForward(config, layer),
            norm(),
        )
        size = config.hidden_size_per_layer_input
        self.per_layer_input_gate = nn.Linear(config.hidden_size, size, bias=False)
        self.per_layer_projection = nn.Linear(size, config.hidden_size, bias=False)
        self.post_per_layer_input_norm = norm()
        self.layer_scalar = nn.Parameter(torch.ones(1))
        self.experts = ExpertTables(config.vocab_size, config.record_vectors())

    def forward(self, x: Tensor, normed: Tensor, per_layer_input: Tensor, kept: KeysAndValues) -> Tensor:
        """Return the residual stream [B, T, d] after this layer.

        Args:
            x: The residual stream before this layer, [B, T, d].
            normed: The result of `input_layernorm` for x.
            per_layer_input: p of this layer, [B, T, P].
            kept: Keys and values of this layer, or of the layer whose keys and values it uses.
        """
        a = x + self.post_attention_layernorm(self.self_attn(normed, kept))
        b = a + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(a)))
        gated = gelu(self.per_layer_input_gate(b)) * per_layer_input
        y: Tensor = (b + self.post_per_layer_input_norm(self.per_layer_projection(gated))) * self.layer_scalar
        return y


class Decoder(nn.Module):
    """Input embedding, projection of the input to all layers, layers and final norm."""

    def __init__(self, config: Gemma4Config) -> None:
        super().__init__()
        layers, size = config.num_hidden_layers, config.hidden_size_per_layer_input
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_scale = Scale(config.hidden_size**0.5)
        self.per_layer_model_projection = nn.Linear(config.hidden_size, layers * size, bias=False)
        self.per_layer_projection_norm = RMSNorm(size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Gemma4ForCausalLM(ReferenceModel):
    """A Gemma 4 text model. It exists only in lookup form. Parameters are named as in transformers."""

    config: Gemma4Config

    def __init__(self, config: Gemma4Config, form: Form = "lookup") -> None:
        """Create the model. Its parameters do not have trained values yet."""
        super().__init__()
        assert form == "lookup"
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, records: ExactRecords, inverse: Tensor) -> Tensor:
        """Return the input of the LM head, [B, T, d]; the arguments are those of `ReferenceModel.hidden`."""
        x = self.model.embed_scale(records.embedding[inverse])
        projected = self._projected(x)
        sources = self.config.shared_kv_caches()
        kept: dict[int, KeysAndValues] = {}
        layer: Any  # torch's type hints do not include the attributes of the modules in a ModuleList
        for index, layer in enumerate(self.model.layers):
            embedding = records.layers[index]["value"][inverse] * self.config.hidden_size_per_layer_input**0.5
            normed = layer.input_layernorm(x)
            if index not in sources:
                kept[index] = layer.self_attn.keys_and_values(normed)
            per_layer_input = (projected[:, :, index] + embedding) * 2**-0.5
            x = layer(x, normed, per_layer_input, kept[sources.get(index, index)])
        out: Tensor = self.model.norm(x)
        return out

    def _projected(self, x: Tensor) -> Tensor:
        """Return the normed projection of the input of layer 0, x [B, T, d], to all layers: [B, T, L, P]."""
        projected = self.model.per_layer_model_projection(x) * self.config.hidden_size**-0.5
        layers, size = self.config.num_hidden_layers, self.config.hidden_size_per_layer_input
        normed: Tensor = self.model.per_layer_projection_norm(projected.view(*x.shape[:-1], layers, size))
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] for outputs of `hidden`, [..., d]."""
        logits: Tensor = self.lm_head(hidden)
        cap = self.config.final_logit_softcapping
        return torch.tanh(logits / cap) * cap if cap else logits

    def taps(self) -> list[Tap]:
        """Return the taps of every layer, then those after the last layer.

        The residual stream of layer 0 is the embedding before its scaling.
        """
        d, size = self.config.hidden_size, self.config.hidden_size_per_layer_input
        model, layers = self.model, self.config.num_hidden_layers
        found = [
            Tap(0, "residual", model.embed_scale, given, d),
            Tap(0, "scaled_embedding", model.embed_scale, computed, d),
            Tap(0, "per_layer_model_projection", model.per_layer_model_projection, computed, layers * size),
        ]
        layer: Any
        for index, layer in enumerate(model.layers):
            found += [Tap(index, "residual", layer.input_layernorm, given, d)] if index else []
            found += [
                Tap(index, "input_norm", layer.input_layernorm, computed, d),
                Tap(index, "attention", layer.self_attn, computed, d),
                Tap(index, "post_attention_norm", layer.post_attention_layernorm, computed, d),
                Tap(index, "feed_forward", layer.mlp, computed, d),
                Tap(index, "post_feed_forward_norm", layer.post_feedforward_layernorm, computed, d),
                Tap(index, "gated_per_layer_input", layer.per_layer_projection, given, size),
                Tap(index, "per_layer_projection", layer.per_layer_projection, computed, d),
            ]
        return [
            *found,
            Tap(None, "residual", model.norm, given, d),
            Tap(None, "norm", model.norm, computed, d),
            Tap(None, "logits", self.lm_head, computed, self.config.vocab_size),
        ]

    def cached(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules that compute a layer's keys (before rotation) and its values."""
        attention: Any = self.model.layers[layer].self_attn
        return attention.k_norm, attention.v_norm
