"""Assembling the dense graph: its inputs and outputs are public API (`docs/bundle-format.md`)."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
from onnxscript import GraphBuilder

from molkv_export.graph.attention import KVCache
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.mole import MoleInputs
from molkv_export.graph.molkv import MolkvInputs
from molkv_runtime.config import ModelConfig
from molkv_runtime.errors import ConfigError
from molkv_runtime.manifest import TensorInfo

OPSET = 22
IR_VERSION = 10

_HEAD_DIM_UNIT = 16
_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "int32": ir.DataType.INT32}


class DenseGraph(NamedTuple):
    """A dense graph whose initializers do not have data yet."""

    model: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def graph_inputs(config: ModelConfig) -> tuple[TensorInfo, ...]:
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
    return (*inputs, *_cache(config, "past_key_values"))


def graph_outputs(config: ModelConfig) -> tuple[TensorInfo, ...]:
    """List the outputs of the cpu profile."""
    logits = TensorInfo(name="logits", dtype="float32", shape=("batch", "logits_length", config.vocab_size))
    return (logits, *_cache(config, "present"))


def _cache(config: ModelConfig, prefix: str) -> list[TensorInfo]:
    shape = ("batch", config.num_key_value_heads, "max_length", config.head_dim)
    return [
        TensorInfo(name=f"{prefix}.{layer}.{kind}", dtype="float32", shape=shape)
        for layer in range(config.num_hidden_layers)
        for kind in ("key", "value")
    ]


def build_graph(config: ModelConfig) -> DenseGraph:
    """Build the dense graph of the cpu profile.

    Raises:
        ConfigError: ONNX Runtime's attention operator does not take this model.
    """
    if config.head_dim % _HEAD_DIM_UNIT:
        raise ConfigError(
            f"head_dim is {config.head_dim}, expected a multiple of {_HEAD_DIM_UNIT}: "
            "ONNX Runtime's GroupQueryAttention rotates no other sizes"
        )
    inputs, outputs = graph_inputs(config), graph_outputs(config)
    graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET, "com.microsoft": 1}, name="dense_graph")
    builder = GraphBuilder(graph)
    values = {info.name: builder.input(info.name, _DTYPES[info.dtype], info.shape) for info in inputs}

    def layer_inputs(layer: int) -> LayerInputs:
        cache = KVCache(
            values[f"past_key_values.{layer}.key"],
            values[f"past_key_values.{layer}.value"],
            values["seqlens_k"],
            values["total_sequence_length"],
        )
        if layer not in config.layers_with_experts:
            return LayerInputs(cache, None)
        value = values[f"expert_value.{layer}"]
        if not config.has_keys:
            return LayerInputs(cache, MoleInputs(value))
        key = values[f"expert_key.{layer}"]
        return LayerInputs(cache, MolkvInputs(key, value, values["expert_mask"], values["position_ids"]))

    logits, presents = LookupExpertForCausalLM(config)(
        builder.op,
        values["inputs_embeds"],
        [layer_inputs(layer) for layer in range(config.num_hidden_layers)],
        values["logits_to_keep"],
    )
    results = [logits, *(value for present in presents for value in present)]
    for info, value in zip(outputs, results, strict=True):
        value.shape, value.dtype = ir.Shape(info.shape), _DTYPES[info.dtype]
        builder.add_output(value, info.name)
    return DenseGraph(ir.Model(graph, ir_version=IR_VERSION, producer_name="molkv-export"), inputs, outputs)
