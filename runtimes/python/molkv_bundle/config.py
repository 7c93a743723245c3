"""The base class of all model configurations. The exporter and the driver use all families through this class."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, Self

import msgspec

from molkv_bundle.errors import ConfigError

WindowDtype = Literal["float32", "int8"]  # dtype of the values in an expert window

MAX_LAYERS = 65_536
MAX_POSITIONS = 2**24  # limits the memory of the tables of cos and sin (one row for each position)


class Vector(NamedTuple):
    """One array that a record holds for each layer with experts."""

    name: str  # name in records; in the manifest and in graphs it is "expert_{name}.{layer}"
    shape: tuple[int, ...]  # a row is one vector along the last axis
    scale: str = ""  # name of the scales in a quantized store; empty: never quantized, dtype as the embedding


class KVCacheShape(NamedTuple):
    """The shape of the KV cache of one layer."""

    layer: int
    num_key_value_heads: int
    head_dim: int


class Rotation(NamedTuple):
    """A rotary embedding. The host computes its cos and sin as inputs of static graphs."""

    size: int  # size of the rotated vectors
    rope_theta: float


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input or output of a graph. A dimension is a number, or a name if it is dynamic."""

    name: str
    dtype: Literal["float32", "float16", "int64", "int32", "int8"]
    shape: tuple[int | str, ...]


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hyperparameters of a decoder-only transformer. Each family has a subclass with more fields.

    Fields have Hugging Face's names where such names exist. The methods describe the vectors in a record, the inputs
    of the graphs and the KV caches. The exporter, the driver and the checks of a bundle call these methods, so their
    code does not depend on the family.
    """

    model_type: str
    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int  # longest sequence, in tokens

    profiles: ClassVar[tuple[str, ...]] = ("cpu",)
    """The profiles that this family has graphs for."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the LM head uses the weights of the input embedding."""
        return False

    @property
    def default_context_length(self) -> int:
        """The context length of the cpu profile's graph, unless the user chooses another."""
        return self.max_position_embeddings

    @property
    def expert_window(self) -> int:
        """The value of `expert_window` in the manifest. It has no effect if `attended_positions` is 0."""
        return 0

    @property
    def longest_window(self) -> int:
        """The length of the model's longest window in positions; 0 if it has none."""
        return self.expert_window

    @property
    def attended_positions(self) -> int:
        """The number of positions whose experts a position attends to, including its own.

        0: a position reads the experts of its own token only.
        """
        return 0

    @property
    def window_dtypes(self) -> tuple[WindowDtype, ...]:
        """The dtypes in which the graph of the cpu profile can read the values of an expert window."""
        return ("float32",)

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """Indices of the layers that have vectors in the records, ascending."""
        raise NotImplementedError

    def record_vectors(self) -> tuple[Vector, ...]:
        """Return the vectors that a record holds for each layer with experts, in the order of their bytes."""
        raise NotImplementedError

    def kv_caches(self) -> tuple[KVCacheShape, ...]:
        """Return the shapes of the KV caches, ordered by layer. A layer that uses another layer's cache has no entry.

        In static graphs all caches have the same number of heads, since all layers share one attention mask.
        """
        raise NotImplementedError

    def shared_kv_caches(self) -> dict[int, int]:
        """Return the layers that write another layer's KV cache again, each with the layer that has the cache.

        Such a layer has `present` outputs in the cpu profile's graph, but no `past_key_values`. The host binds the
        outputs to the memory of the other layer's cache. The layer writes the numbers that are already there.
        """
        return {}

    def expert_inputs(self) -> list[TensorInfo]:
        """Return the expert inputs of the cpu profile's graph, and its input for positions if it has one."""
        raise NotImplementedError

    def int8_window_inputs(self) -> list[TensorInfo]:
        """Return the inputs of `expert_inputs` for a graph that reads the window's values as int8 codes with scales.

        Only families with "int8" in `window_dtypes` implement this method.
        """
        raise NotImplementedError

    def static_expert_inputs(self, layers: list[int], length: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the expert inputs of a static graph, by name.

        The inputs include cos and sin of every rotation except "rotary". All static graphs have the inputs of "rotary".

        Args:
            layers: The layers whose experts the graph reads.
            length: The number of positions of a call.
        """
        raise NotImplementedError

    def rotations(self) -> dict[str, Rotation]:
        """Return the rotations in static graphs, by name. A rotation has the inputs `{name}_cos` and `{name}_sin`."""
        raise NotImplementedError

    def computed_layers(self, length: int) -> range:
        """Return the layers that a static graph computes completely.

        A graph for more than one position returns no logits, so its last layer computes only keys and values.
        """
        return range(self.num_hidden_layers - (length > 1))

    def restricted(self, context_length: int, expert_window: int) -> Self:
        """Return the configuration with this context length and, if the family has a window, this expert window."""
        assert expert_window == self.expert_window
        return msgspec.structs.replace(self, max_position_embeddings=context_length)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_sizes(self, *sizes, "max_position_embeddings")
        for name, limit in (("num_hidden_layers", MAX_LAYERS), ("max_position_embeddings", MAX_POSITIONS)):
            if getattr(self, name) > limit:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected at most {limit}")


def check_sizes(config: ModelConfig, *names: str) -> None:
    """Check that each of these fields is from 1 to 2147483647.

    Raises:
        ConfigError: A field is outside of this range.
    """
    for name in names:
        if not 0 < getattr(config, name) < 2**31:
            raise ConfigError(f"{name}: found {getattr(config, name)}, expected a number from 1 to 2147483647")


def check_even(config: ModelConfig, name: str) -> None:
    """Check that a field is even. The field is the size of rotated vectors.

    Raises:
        ConfigError: The field is odd.
    """
    if getattr(config, name) % 2:
        raise ConfigError(
            f"{name}: found {getattr(config, name)}, expected an even number (rotary embedding rotates pairs)"
        )
