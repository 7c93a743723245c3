"""What exporter and drivers have to know of a model, whatever its family: the base of all configurations."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, Self

import msgspec

from molkv_bundle.errors import ConfigError

WindowDtype = Literal["float32", "int8"]  # of the values in an expert window

MAX_LAYERS = 65_536
MAX_POSITIONS = 2**24  # a table of rotations is as long


class Vector(NamedTuple):
    """What a record holds of a layer under one name."""

    name: str  # in records; manifest and graphs say "expert_{name}.{layer}"
    shape: tuple[int, ...]  # rows are along the last axis
    scale: str = ""  # name of its scales where the store's dtype is a quantized one; empty: stored as the embedding is


class KVCacheShape(NamedTuple):
    """The KV cache of one layer."""

    layer: int
    num_key_value_heads: int
    head_dim: int


class Rotation(NamedTuple):
    """A rotary embedding whose cos and sin the host gives to static graphs."""

    size: int  # of the vectors that are rotated
    rope_theta: float


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input or output of a graph; dimensions are numbers or names."""

    name: str
    dtype: Literal["float32", "float16", "int64", "int32", "int8"]
    shape: tuple[int | str, ...]


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hyperparameters of a decoder-only transformer. A family derives a class from this one and adds its fields.

    Fields have Hugging Face's names where one exists. The methods say what a record holds, what graphs read and what
    is cached: all that the exporter, the driver and the checks of a bundle need, so that none of them asks for the
    family.
    """

    model_type: str
    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int  # longest sequence, in tokens

    profiles: ClassVar[tuple[str, ...]] = ("cpu",)
    """Profiles that this family's graphs can be had for."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the LM head is the input embedding."""
        return False

    @property
    def expert_window(self) -> int:
        """The manifest's `expert_window` of each graph; `attended_positions` says whether it has an effect."""
        return 0

    @property
    def attended_positions(self) -> int:
        """Positions whose experts a position attends to, itself included; 0: it reads the experts of its own token."""
        return 0

    @property
    def window_dtypes(self) -> tuple[WindowDtype, ...]:
        """In which dtypes the graph of the cpu profile can read the values of an expert window."""
        return ("float32",)

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """Indices of the layers that records hold vectors of, ascending."""
        raise NotImplementedError

    def record_vectors(self) -> tuple[Vector, ...]:
        """Return what a record holds of each of these layers, in the order of its bytes."""
        raise NotImplementedError

    def kv_caches(self) -> tuple[KVCacheShape, ...]:
        """Return the KV caches, by layer; a layer that uses another's has none.

        In static graphs all have the same number of heads, since they share one mask.
        """
        raise NotImplementedError

    def expert_inputs(self) -> list[TensorInfo]:
        """Return what the graph of the cpu profile reads of experts and of positions."""
        raise NotImplementedError

    def int8_window_inputs(self) -> list[TensorInfo]:
        """Return the same as `expert_inputs` of a graph that reads the values of the window as int8 codes and scales.

        Only families with "int8" among their `window_dtypes` have it.
        """
        raise NotImplementedError

    def static_expert_inputs(self, layers: list[int], length: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what a static graph for `length` positions reads of the experts of some layers.

        They include cos and sin of every rotation but "rotary", which all static graphs have.
        """
        raise NotImplementedError

    def rotations(self) -> dict[str, Rotation]:
        """Return the rotations that static graphs read, by the stem of the inputs' names."""
        raise NotImplementedError

    def computed_layers(self, length: int) -> range:
        """Return the layers that a static graph computes whole.

        Of longer calls no logits are wanted, so that the last layer computes its keys and values only.
        """
        return range(self.num_hidden_layers - (length > 1))

    def restricted(self, context_length: int, expert_window: int) -> Self:
        """Return the model with a shorter context and, in families that have one, a shorter expert window."""
        assert expert_window == self.expert_window
        return msgspec.structs.replace(self, max_position_embeddings=context_length)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_sizes(self, *sizes, "max_position_embeddings")
        for name, limit in (("num_hidden_layers", MAX_LAYERS), ("max_position_embeddings", MAX_POSITIONS)):
            if getattr(self, name) > limit:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at most {limit}")


def check_sizes(config: ModelConfig, *names: str) -> None:
    """Check that fields are from 1 to 2147483647.

    Raises:
        ConfigError: One is not.
    """
    for name in names:
        if not 0 < getattr(config, name) < 2**31:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected a number from 1 to 2147483647")
