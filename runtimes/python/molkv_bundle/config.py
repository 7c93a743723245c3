"""The configuration of a lookup-expert model: one definition for checkpoints, exporter, manifest and driver."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from molkv_bundle.errors import ConfigError
from molkv_bundle.json_file import decode_json, read_bytes


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hyperparameters of a decoder-only transformer with lookup experts (MoLE 2503.15798, MoLKV 2512.09723).

    Field names are Hugging Face's where one exists. Fields that the papers leave open are marked "our choice".
    A field whose default is 0 takes its value from the other fields, as its comment says.
    """

    model_type: Literal["molkv", "mole"]
    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int  # longest sequence, in tokens
    num_experts: int  # N experts per token id; 0 makes a plain dense model
    num_key_value_heads: int = 0  # 0: num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    hidden_act: Literal["silu", "gelu"] = "silu"  # our choice: silu is gated (SwiGLU), gelu is plain with exact erf
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    expert_intermediate_size: int = 0  # of the training-form networks; 0: intermediate_size
    expert_layers: tuple[int, ...] | None = None  # our choice: which layers carry experts; None: all
    # MoLKV only:
    expert_key_size: int = 0  # dk
    expert_window: int = 0  # W: the last W positions, the present one included, can be attended
    expert_qk_norm: bool = True  # our choice: RMSNorm on queries and keys
    expert_rope: bool = True  # our choice: rotate queries and keys by their positions, rope_theta shared
    expert_gate: Literal["none", "sigmoid"] = "none"  # our choice: g_t = sigmoid(w_g . n_t)

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads "
                f"({self.num_attention_heads}) where head_dim is not given"
            )
        defaults = {
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // max(1, self.num_attention_heads),
            "expert_intermediate_size": self.intermediate_size,
        }
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                msgspec.structs.force_setattr(self, name, value)
        _check_sizes(self)
        if self.expert_layers is None:
            msgspec.structs.force_setattr(self, "expert_layers", tuple(range(self.num_hidden_layers)))
        _check_relations(self)

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """Indices of the layers that carry experts, ascending; empty for a dense model."""
        return tuple(self.expert_layers or ()) if self.num_experts else ()

    @property
    def has_keys(self) -> bool:
        """Whether experts are key-value pairs that live in a window (MoLKV), not values alone (MoLE)."""
        return self.model_type == "molkv" and bool(self.layers_with_experts)


_MAX_LAYERS = 65_536
_MAX_POSITIONS = 2**24  # a table of rotations is as long


def _check_sizes(config: ModelConfig) -> None:
    positive = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "expert_intermediate_size",
    ]
    for name in positive:
        if not 0 < getattr(config, name) < 2**31:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected a number from 1 to 2147483647")
    for name in ("rms_norm_eps", "rope_theta"):
        if not 0 < getattr(config, name) < float("inf"):
            raise ConfigError(f"{name} is {getattr(config, name)}, expected a number above 0")
    if config.num_hidden_layers > _MAX_LAYERS:
        raise ConfigError(f"num_hidden_layers is {config.num_hidden_layers}, expected at most {_MAX_LAYERS}")
    if config.max_position_embeddings > _MAX_POSITIONS:
        raise ConfigError(
            f"max_position_embeddings is {config.max_position_embeddings}, expected at most {_MAX_POSITIONS}"
        )
    if not 0 <= config.num_experts < 2**31:
        raise ConfigError(f"num_experts is {config.num_experts}, expected 0 (a dense model) or more")


def _check_relations(config: ModelConfig) -> None:
    for name in ("expert_key_size", "expert_window"):
        if config.has_keys and not 0 < getattr(config, name) < 2**31:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected 1 or more in a molkv model")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads is {config.num_attention_heads}, "
            f"expected a multiple of num_key_value_heads ({config.num_key_value_heads})"
        )
    rotated = {"head_dim": config.head_dim}
    if config.has_keys and config.expert_rope:
        rotated["expert_key_size"] = config.expert_key_size
    for name, size in rotated.items():
        if size % 2:
            raise ConfigError(f"{name} is {size}, expected an even number (rotary embedding turns pairs)")
    layers = config.expert_layers or ()
    if list(layers) != sorted(set(layers)) or any(not 0 <= i < config.num_hidden_layers for i in layers):
        raise ConfigError(
            f"expert_layers is {list(layers)}, expected ascending layer indices below {config.num_hidden_layers}"
        )


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        ConfigError: The file is missing, is not JSON, or a field is missing, unknown or has an impossible value.
    """
    data = read_bytes(path, ConfigError, "a checkpoint needs a config.json")
    return decode_json(data, ModelConfig, path, ConfigError)
