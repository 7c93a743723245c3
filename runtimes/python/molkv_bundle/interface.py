"""The dense graph's inputs and outputs: public API between exporter and drivers (`docs/bundle-format.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from molkv_bundle.config import ModelConfig
from molkv_bundle.manifest import KVDtype, TensorInfo

HIDDEN = -1e4  # what static graphs add to scores that do not count: no -inf, which not every compiler takes
Tensors = tuple[TensorInfo, ...]
Arrays = dict[str, npt.NDArray[np.generic]]  # what is bound to them, by name
Graphs = TypeVar("Graphs")


def graph_interface(config: ModelConfig, kv_dtype: KVDtype, length: int = 0) -> tuple[Tensors, Tensors]:
    """List inputs and outputs of a graph.

    Args:
        config: The model, with the context and the window of the graph.
        kv_dtype: Of the KV cache.
        length: T of a static graph; 0 is the cpu profile's, which takes any.
    """
    if length:
        return _static_inputs(config, kv_dtype, length), _static_outputs(config, kv_dtype, length)
    return graph_inputs(config, kv_dtype), graph_outputs(config, kv_dtype)


def graph_inputs(config: ModelConfig, kv_dtype: KVDtype = "float32") -> tuple[TensorInfo, ...]:
    """List the inputs of the cpu profile."""
    d, n = config.hidden_size, config.num_experts
    inputs = [TensorInfo(name="inputs_embeds", dtype="float32", shape=("batch", "length", d))]
    if config.has_keys:
        inputs += [
            TensorInfo(name="position_ids", dtype="int64", shape=("batch", "length")),
            TensorInfo(name="expert_mask", dtype="float32", shape=("blocks", "block_length", "window_experts")),
        ]
    for layer in config.layers_with_experts:
        if config.has_keys:
            key_shape = ("blocks", "window_experts", config.expert_key_size)
            inputs += [
                TensorInfo(name=f"expert_key.{layer}", dtype="float32", shape=key_shape),
                TensorInfo(name=f"expert_value.{layer}", dtype="float32", shape=("blocks", "window_experts", d)),
            ]
        else:
            inputs.append(TensorInfo(name=f"expert_value.{layer}", dtype="float32", shape=("batch", "length", n, d)))
    inputs += [
        TensorInfo(name="seqlens_k", dtype="int32", shape=("batch",)),
        TensorInfo(name="total_sequence_length", dtype="int32", shape=()),
        TensorInfo(name="logits_to_keep", dtype="int64", shape=(1,)),
    ]
    return (*inputs, *_cache(config, "past_key_values", kv_dtype))


def graph_outputs(config: ModelConfig, kv_dtype: KVDtype = "float32") -> tuple[TensorInfo, ...]:
    """List the outputs of the cpu profile."""
    logits = TensorInfo(name="logits", dtype="float32", shape=("batch", "logits_length", config.vocab_size))
    return (logits, *_cache(config, "present", kv_dtype))


def _cache(config: ModelConfig, prefix: str, kv_dtype: KVDtype) -> list[TensorInfo]:
    shape = ("batch", config.num_key_value_heads, "max_length", config.head_dim)
    return [
        TensorInfo(name=f"{prefix}.{layer}.{kind}", dtype=kv_dtype, shape=shape)
        for layer in range(config.num_hidden_layers)
        for kind in ("key", "value")
    ]


def computed_layers(config: ModelConfig, length: int) -> range:
    """Give the layers that a static graph computes whole.

    Of longer calls no logits are wanted, so that the last layer gives its keys and values only.
    """
    return range(config.num_hidden_layers - (length > 1))


def _static_inputs(config: ModelConfig, dtype: KVDtype, length: int) -> Tensors:
    d, n, context = config.hidden_size, config.num_experts, config.max_position_embeddings
    heads, size = config.num_key_value_heads, config.head_dim
    layers = [layer for layer in config.layers_with_experts if layer in computed_layers(config, length)]
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (length, d),
        "rotary_cos": (length, 1, size),
        "rotary_sin": (length, 1, size),
    }
    if computed_layers(config, length):
        group = config.num_attention_heads // heads
        shapes["attention_mask"] = (1, group * length, context + length)
    if config.has_keys and layers:
        if config.expert_rope:
            shapes |= dict.fromkeys(("expert_rotary_cos", "expert_rotary_sin"), (length, config.expert_key_size))
        seen = (length + config.expert_window - 1) * n
        shapes["expert_mask"] = (1, length, seen)
        for layer in layers:
            shapes[f"expert_key.{layer}"] = (1, seen, config.expert_key_size)
            shapes[f"expert_value.{layer}"] = (1, seen, d)
    else:
        shapes |= {f"expert_value.{layer}": (length, n, d) for layer in layers}
    for layer in computed_layers(config, length):
        shapes[f"past_key_values.{layer}.key"] = (heads, size, context)
        shapes[f"past_key_values.{layer}.value"] = (heads, context, size)
    return _tensors(shapes, dtype)


def _static_outputs(config: ModelConfig, dtype: KVDtype, length: int) -> Tensors:
    heads, size = config.num_key_value_heads, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.num_hidden_layers):
        shapes |= {f"present.{layer}.key": (heads, size, length), f"present.{layer}.value": (heads, length, size)}
    logits = _tensors({"logits": (1, config.vocab_size)}, "float32") if length == 1 else ()
    return (*logits, *_tensors(shapes, dtype))


def _tensors(shapes: dict[str, tuple[int, ...]], dtype: KVDtype) -> Tensors:
    return tuple(TensorInfo(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items())


def for_call(graphs: Mapping[int, Graphs], inputs: Arrays) -> Graphs:
    """Choose, of graphs by the length of a call, the one for these inputs; 0 takes any length."""
    return graphs[0 if 0 in graphs else inputs["inputs_embeds"].shape[-2]]
