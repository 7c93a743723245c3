"""Configuration of the toy family. A record holds one vector per layer, narrower than the residual stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from molkv_bundle import KVCacheShape, ModelConfig, Rotation, TensorInfo, Vector

SHARED = 2  # this layer has no keys and values; it attends to those of layer 0


class ToyConfig(ModelConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of a model with three layers, the second with wider heads than the others."""

    model_type: Literal["toy"]
    head_dim: int
    wide_head_dim: int
    num_key_value_heads: int
    hidden_size_per_layer_input: int  # P
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    wide_rope_theta: float = 500.0

    profiles: ClassVar[tuple[str, ...]] = ("cpu", "nnapi")

    def head_dim_of(self, layer: int) -> int:
        return self.wide_head_dim if layer == 1 else self.head_dim

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))

    def record_vectors(self) -> tuple[Vector, ...]:
        return (Vector("vector", (self.hidden_size_per_layer_input,), "scale"),)

    def kv_caches(self) -> tuple[KVCacheShape, ...]:
        own = (layer for layer in range(self.num_hidden_layers) if layer != SHARED)
        return tuple(KVCacheShape(layer, self.num_key_value_heads, self.head_dim_of(layer)) for layer in own)

    def expert_inputs(self) -> list[TensorInfo]:
        shape = ("batch", "length", self.hidden_size_per_layer_input)
        return [
            TensorInfo(name=f"expert_vector.{layer}", dtype="float32", shape=shape)
            for layer in self.layers_with_experts
        ]

    def static_expert_inputs(self, layers: list[int], length: int) -> dict[str, tuple[int, ...]]:
        rotary = dict.fromkeys(("wide_rotary_cos", "wide_rotary_sin"), (length, 1, self.wide_head_dim))
        return {
            **rotary,
            **{f"expert_vector.{layer}": (length, self.hidden_size_per_layer_input) for layer in layers},
        }

    def rotations(self) -> dict[str, Rotation]:
        return {
            "rotary": Rotation(self.head_dim, self.rope_theta),
            "wide_rotary": Rotation(self.wide_head_dim, self.wide_rope_theta),
        }

    def computed_layers(self, length: int) -> range:  # noqa: ARG002
        return range(self.num_hidden_layers)
