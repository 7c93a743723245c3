"""Gemma 4 E2B and E4B, text only: a decoder with per-layer embeddings, which are the experts of this family."""

from __future__ import annotations

from typing import Literal

from molkv_bundle.config import KVCacheShape, ModelConfig, TensorInfo, Vector, check_even, check_sizes
from molkv_bundle.errors import ConfigError

LayerType = Literal["sliding_attention", "full_attention"]
_CONTEXT_LENGTH = 4096


class Gemma4Config(ModelConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of a Gemma 4 text model. The names are those of transformers' `Gemma4TextConfig`.

    Three fields are taken out of transformers' `rope_parameters`: `sliding_rope_theta`, `full_rope_theta` and
    `partial_rotary_factor`, which is that of full attention.
    """

    model_type: Literal["gemma4_text"]
    num_key_value_heads: int
    head_dim: int  # of layers with sliding attention
    global_head_dim: int  # of layers with full attention
    layer_types: tuple[LayerType, ...]
    num_kv_shared_layers: int  # the last layers, which use the KV cache of the last earlier layer of their type
    use_double_wide_mlp: bool  # whether the layers that share a KV cache have 2 * intermediate_size
    sliding_window: int  # a position of sliding attention sees this number of positions, its own included
    hidden_size_per_layer_input: int  # numbers of a per-layer embedding in one layer
    rms_norm_eps: float
    sliding_rope_theta: float
    full_rope_theta: float
    partial_rotary_factor: float  # the part of a head that full attention rotates
    final_logit_softcapping: float  # c in c * tanh(logits / c); 0: logits stay as they are
    tie_word_embeddings: bool

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """All layers."""
        return tuple(range(self.num_hidden_layers))

    @property
    def default_context_length(self) -> int:
        """The model's context, at most 4,096: the KV cache and the tables of cos and sin grow with the context."""
        return min(self.max_position_embeddings, _CONTEXT_LENGTH)

    @property
    def longest_window(self) -> int:
        """The window of sliding attention."""
        return self.sliding_window

    def record_vectors(self) -> tuple[Vector, ...]:
        """Return the only vector: the per-layer embedding."""
        return (Vector("value", (self.hidden_size_per_layer_input,), "scale"),)

    def head_size(self, layer: int) -> int:
        """Return the size of a layer's heads."""
        return self.head_dim if self.is_sliding(layer) else self.global_head_dim

    def is_sliding(self, layer: int) -> bool:
        """Return whether a layer has sliding attention."""
        return self.layer_types[layer] == "sliding_attention"

    def feed_forward_size(self, layer: int) -> int:
        """Return the size of a layer's feed-forward network."""
        is_wide = self.use_double_wide_mlp and layer >= self.num_hidden_layers - self.num_kv_shared_layers
        return self.intermediate_size * (2 if is_wide else 1)

    def kv_caches(self) -> tuple[KVCacheShape, ...]:
        """Return one KV cache for each layer that does not share the cache of another layer."""
        layers = range(self.num_hidden_layers - self.num_kv_shared_layers)
        return tuple(KVCacheShape(layer, self.num_key_value_heads, self.head_size(layer)) for layer in layers)

    def shared_kv_caches(self) -> dict[int, int]:
        """Return, for each layer without a KV cache of its own, the layer whose cache it uses."""
        first = self.num_hidden_layers - self.num_kv_shared_layers
        last = {self.layer_types[layer]: layer for layer in range(first)}
        return {layer: last[self.layer_types[layer]] for layer in range(first, self.num_hidden_layers)}

    def expert_inputs(self) -> list[TensorInfo]:
        """Return one input for each layer: the per-layer embedding [B, T, P] of each position's token."""
        shape = ("batch", "length", self.hidden_size_per_layer_input)
        return [
            TensorInfo(name=f"expert_value.{layer}", dtype="float32", shape=shape) for layer in self.layers_with_experts
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("num_key_value_heads", "head_dim", "global_head_dim", "sliding_window", "hidden_size_per_layer_input")
        check_sizes(self, *sizes)
        for name in ("head_dim", "global_head_dim"):
            check_even(self, name)
        for name in ("rms_norm_eps", "sliding_rope_theta", "full_rope_theta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected a number above 0")
        if not 0 < self.partial_rotary_factor <= 1:
            found = self.partial_rotary_factor
            raise ConfigError(f"partial_rotary_factor: found {found}, expected a number above 0 and at most 1")
        if not 0 <= self.final_logit_softcapping < float("inf"):
            raise ConfigError(
                f"final_logit_softcapping: found {self.final_logit_softcapping}, expected a number of at least 0"
            )
        self._check_relations()

    def _check_relations(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads: found {self.num_attention_heads}, "
                f"expected a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types: found {len(self.layer_types)} layers, expected num_hidden_layers "
                f"({self.num_hidden_layers})"
            )
        if not 0 <= self.num_kv_shared_layers < self.num_hidden_layers:
            raise ConfigError(
                f"num_kv_shared_layers: found {self.num_kv_shared_layers}, expected 0 to {self.num_hidden_layers - 1}"
            )
        first = self.num_hidden_layers - self.num_kv_shared_layers
        if missing := set(self.layer_types[first:]) - set(self.layer_types[:first]):
            raise ConfigError(
                f"num_kv_shared_layers: found {self.num_kv_shared_layers}, expected fewer, since no layer before "
                f"layer {first} has {missing.pop()}"
            )
