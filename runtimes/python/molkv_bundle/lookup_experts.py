"""The configuration that MoLE (arXiv 2503.15798) and MoLKV (arXiv 2512.09723) share."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import msgspec

from molkv_bundle.config import KVCacheShape, ModelConfig, Rotation, check_even, check_sizes
from molkv_bundle.errors import ConfigError

# In a model without experts, the expert fields get these values, whatever values were given.
_DENSE = {
    "num_experts": 0,
    "expert_layers": (),
    "expert_intermediate_size": 0,
    "expert_key_size": 0,
    "expert_window": 0,
    "expert_qk_norm": False,
    "expert_rope": False,
    "expert_gate": "none",
}


class LookupExpertConfig(ModelConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of a Llama-like decoder whose layers add a mixture of experts to the feed-forward output.

    A comment "our choice" marks a field whose meaning the papers do not define. A comment "0: FIELD" means that the
    value of FIELD replaces 0.
    """

    num_experts: int  # N experts per token id; 0: a plain dense model, in which the other expert fields have no effect
    num_key_value_heads: int = 0  # 0: num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    hidden_act: Literal["silu", "gelu"] = "silu"  # our choice: silu: gated (SwiGLU); gelu: not gated, exact erf
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    expert_intermediate_size: int = 0  # size of the training-form networks; 0: intermediate_size
    expert_layers: tuple[int, ...] | None = None  # our choice: the layers that have experts; None: all
    # These fields are for MoLKV only. Manifests of MoLE models contain them, too, but they have no effect there.
    expert_key_size: int = 0  # dk
    expert_window: int = 0  # W: a position attends to the experts of the last W positions, its own included
    expert_qk_norm: bool = True  # our choice: RMSNorm on queries and keys
    expert_rope: bool = True  # our choice: rotate queries and keys by their positions, with rope_theta
    expert_gate: Literal["none", "sigmoid"] = "none"  # our choice: g_t = sigmoid(w_g . n_t)

    profiles: ClassVar[tuple[str, ...]] = ("cpu", "coreml", "nnapi")

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size: found {self.hidden_size}, expected a multiple of num_attention_heads "
                f"({self.num_attention_heads}) if head_dim is not given"
            )
        defaults = {
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // max(1, self.num_attention_heads),
            "expert_intermediate_size": self.intermediate_size if self.num_experts else 0,
        }
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                msgspec.structs.force_setattr(self, name, value)
        super().__post_init__()
        self._check_sizes()
        if self.expert_layers is None:
            msgspec.structs.force_setattr(self, "expert_layers", tuple(range(self.num_hidden_layers)))
        if not (self.num_experts and self.expert_layers):
            for name, nothing in _DENSE.items():
                msgspec.structs.force_setattr(self, name, nothing)
        self._check_relations()

    def _check_sizes(self) -> None:
        check_sizes(self, "num_key_value_heads", "head_dim")
        if self.num_experts:
            check_sizes(self, "expert_intermediate_size")
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected a number above 0")
        if not 0 <= self.num_experts < 2**31:
            raise ConfigError(f"num_experts: found {self.num_experts}, expected 0 (a dense model) or more")
        for name in ("expert_key_size", "expert_window"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected 0 or more")

    def _check_relations(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads: found {self.num_attention_heads}, "
                f"expected a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        check_even(self, "head_dim")
        layers = self.expert_layers or ()
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.num_hidden_layers for i in layers):
            raise ConfigError(
                f"expert_layers: found {list(layers)}, expected ascending layer indices below {self.num_hidden_layers}"
            )

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """Indices of the layers that have experts, ascending; empty for a dense model."""
        return self.expert_layers or ()

    def kv_caches(self) -> tuple[KVCacheShape, ...]:
        """Return one KV cache for each layer; all have the same shape."""
        layers = range(self.num_hidden_layers)
        return tuple(KVCacheShape(layer, self.num_key_value_heads, self.head_dim) for layer in layers)

    def rotations(self) -> dict[str, Rotation]:
        """Return the rotation of attention."""
        return {"rotary": Rotation(self.head_dim, self.rope_theta)}

    def restricted(self, context_length: int, expert_window: int) -> Self:
        """Return the configuration with this context length and this expert window."""
        return msgspec.structs.replace(self, max_position_embeddings=context_length, expert_window=expert_window)
