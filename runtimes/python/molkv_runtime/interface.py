"""The dense graph's inputs and outputs: public API between exporter and drivers (`docs/bundle-format.md`)."""

from __future__ import annotations

from molkv_runtime.config import ModelConfig
from molkv_runtime.manifest import KVDtype, TensorInfo


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
