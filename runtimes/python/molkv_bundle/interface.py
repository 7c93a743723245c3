"""The inputs and outputs of the dense graph: the interface between exporter and drivers (`docs/bundle-format.md`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from molkv_bundle.config import KVCacheShape, ModelConfig, TensorInfo, WindowDtype
from molkv_bundle.manifest import KVDtype
from molkv_bundle.row_formats import Floats

HIDDEN = -1e4  # static graphs add this to masked scores; it is finite, because some compilers do not accept -inf
Tensors = tuple[TensorInfo, ...]
Arrays = dict[str, npt.NDArray[np.generic]]  # arrays for inputs or outputs, by name


def graph_interface(
    config: ModelConfig, kv_dtype: KVDtype, length: int = 0, window_dtype: WindowDtype = "float32"
) -> tuple[Tensors, Tensors]:
    """Return the inputs and outputs of a graph.

    Args:
        config: The configuration, with the context length and the expert window of the graph.
        kv_dtype: Dtype of the KV cache.
        length: The number of positions T of a static graph; 0 for the cpu profile, which accepts any number.
        window_dtype: Dtype of the values in the expert window, for the cpu profile.
    """
    if length:
        return _static_inputs(config, kv_dtype, length), _static_outputs(config, kv_dtype, length)
    return _inputs(config, kv_dtype, window_dtype), _outputs(config, kv_dtype)


def _inputs(config: ModelConfig, kv_dtype: KVDtype, window_dtype: WindowDtype) -> Tensors:
    """Return the inputs of the cpu profile."""
    return (
        TensorInfo(name="inputs_embeds", dtype="float32", shape=("batch", "length", config.hidden_size)),
        *(config.expert_inputs() if window_dtype == "float32" else config.int8_window_inputs()),
        TensorInfo(name="seqlens_k", dtype="int32", shape=("batch",)),
        TensorInfo(name="total_sequence_length", dtype="int32", shape=()),
        TensorInfo(name="logits_to_keep", dtype="int64", shape=(1,)),
        *_cache("past_key_values", config.kv_caches(), kv_dtype),
    )


def _outputs(config: ModelConfig, kv_dtype: KVDtype) -> Tensors:
    """Return the outputs of the cpu profile."""
    logits = TensorInfo(name="logits", dtype="float32", shape=("batch", "logits_length", config.vocab_size))
    caches = {cache.layer: cache for cache in config.kv_caches()}
    again = [caches[source]._replace(layer=layer) for layer, source in config.shared_kv_caches().items()]
    return (logits, *_cache("present", [*caches.values(), *again], kv_dtype))


def _cache(prefix: str, caches: Iterable[KVCacheShape], kv_dtype: KVDtype) -> list[TensorInfo]:
    return [
        TensorInfo(
            name=f"{prefix}.{cache.layer}.{kind}",
            dtype=kv_dtype,
            shape=("batch", cache.num_key_value_heads, "max_length", cache.head_dim),
        )
        for cache in caches
        for kind in ("key", "value")
    ]


def _static_inputs(config: ModelConfig, dtype: KVDtype, length: int) -> Tensors:
    context, computed = config.max_position_embeddings, config.computed_layers(length)
    size, caches = config.rotations()["rotary"].size, config.kv_caches()
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (length, config.hidden_size),
        "rotary_cos": (length, 1, size),
        "rotary_sin": (length, 1, size),
    }
    if computed:
        group = config.num_attention_heads // caches[0].num_key_value_heads
        shapes["attention_mask"] = (1, group * length, context + length)
    layers = [layer for layer in config.layers_with_experts if layer in computed]
    shapes |= config.static_expert_inputs(layers, length)
    for layer, heads, head_dim in caches:
        if layer in computed:
            shapes[f"past_key_values.{layer}.key"] = (heads, head_dim, context)
            shapes[f"past_key_values.{layer}.value"] = (heads, context, head_dim)
    return _tensors(shapes, dtype)


def _static_outputs(config: ModelConfig, dtype: KVDtype, length: int) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, heads, size in config.kv_caches():
        shapes |= {f"present.{layer}.key": (heads, size, length), f"present.{layer}.value": (heads, length, size)}
    logits = _tensors({"logits": (1, config.vocab_size)}, "float32") if length == 1 else ()
    return (*logits, *_tensors(shapes, dtype))


def _tensors(shapes: dict[str, tuple[int, ...]], dtype: KVDtype) -> Tensors:
    return tuple(TensorInfo(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items())


def rotary_tables(
    positions: npt.ArrayLike, size: int, theta: float, partial_rotary_factor: float = 1.0
) -> tuple[Floats, Floats]:
    """Return cos and sin, each float32 [*positions.shape, size / 2].

    Angles are computed in float64, as in the reference model. If `partial_rotary_factor` is less than 1, only this part
    of the pairs is rotated, the pairs with the highest frequencies.
    """
    half = size // 2
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    frequencies[rotated_pairs(size, partial_rotary_factor) :] = 0
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated_pairs(size: int, partial_rotary_factor: float) -> int:
    """Return the number of pairs that are rotated in a vector of this size (transformers' RoPE type "proportional")."""
    return int(partial_rotary_factor * size // 2)
