"""Reference model of the toy family.

b = x + Attention(RMSNorm(x)); y = b + up(silu(gate(b)) * p), where p is the vector of the record.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from molkv_export.modeling import ExactRecords, Form, ReferenceModel, Tap
from molkv_export.modeling.layers import RMSNorm, rotate
from molkv_export.modeling.reference import ExpertTables, computed, given
from tests.molkv_export.toy_family.config import SHARED, ToyConfig


class ToyAttention(nn.Module):
    """Grouped-query attention with the head size of its layer. A sharing layer gets keys and values as input."""

    def __init__(self, config: ToyConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim_of(layer)
        self.theta = config.wide_rope_theta if layer == 1 else config.rope_theta
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        if layer != SHARED:
            width = config.num_key_value_heads * self.head_dim
            self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
            self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = rotate(self.heads(self.k_proj(x)), torch.arange(x.shape[1]), self.theta)
        return key, self.heads(self.v_proj(x))

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = rotate(self.heads(self.q_proj(x)), torch.arange(x.shape[1]), self.theta)
        out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


class ToyGate(nn.Module):
    """The expert branch up(silu(gate(b)) * p)."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.hidden_size_per_layer_input, bias=False)
        self.up_proj = nn.Linear(config.hidden_size_per_layer_input, config.hidden_size, bias=False)

    def forward(self, b: Tensor, vector: Tensor) -> Tensor:
        out: Tensor = self.up_proj(silu(self.gate_proj(b)) * vector)
        return out


class ToyLayer(nn.Module):
    """One layer."""

    def __init__(self, config: ToyConfig, layer: int, form: Form) -> None:
        super().__init__()
        assert form == "lookup"
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ToyAttention(config, layer)
        self.per_layer_gate = ToyGate(config)
        self.experts = ExpertTables(config.vocab_size, config.record_vectors())


class ToyForCausalLM(ReferenceModel):
    """The whole model. It exists only in lookup form."""

    config: ToyConfig

    def __init__(self, config: ToyConfig, form: Form = "lookup") -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(ToyLayer(config, layer, form) for layer in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, records: ExactRecords, inverse: Tensor) -> Tensor:
        x = records.embedding[inverse]
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        layer: Any
        for index, layer in enumerate(self.model.layers):  # type: ignore[arg-type]
            n = layer.input_layernorm(x)
            if index != SHARED:
                kept[index] = layer.self_attn.keys_and_values(n)
            b = x + layer.self_attn(n, *kept[0 if index == SHARED else index])
            x = b + layer.per_layer_gate(b, records.layers[index]["vector"][inverse])
        normed: Tensor = self.model.norm(x)  # type: ignore[operator]
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(hidden)
        return logits

    def taps(self) -> list[Tap]:
        d, found = self.config.hidden_size, []
        layer: Any
        for index, layer in enumerate(self.model.layers):  # type: ignore[arg-type]
            found += [
                Tap(index, "residual", layer.input_layernorm, given, d),
                Tap(index, "attention", layer.self_attn, computed, d),
                Tap(index, "gated_vector", layer.per_layer_gate, computed, d),
            ]
        norm: Any = self.model.norm
        return [*found, Tap(None, "norm", norm, computed, d), Tap(None, "logits", self.lm_head, computed, 97)]
