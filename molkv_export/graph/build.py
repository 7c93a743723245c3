"""Assembling the dense graph."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir
from onnxscript import GraphBuilder

from molkv_export.graph.attention import KVCache
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.linear import FLOAT32, DenseFormat, Linear
from molkv_export.graph.mole import MoleInputs
from molkv_export.graph.molkv import MolkvInputs
from molkv_runtime.config import ModelConfig
from molkv_runtime.errors import ConfigError
from molkv_runtime.interface import graph_inputs, graph_outputs
from molkv_runtime.manifest import TensorInfo

OPSET = 22
IR_VERSION = 10

_HEAD_DIM_UNIT = 16
_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
}


class DenseGraph(NamedTuple):
    """A dense graph whose initializers do not have data yet."""

    model: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    linears: dict[str, Linear]  # by name; they say how weights become their initializers

    @property
    def nbytes(self) -> int:
        """Bytes of all initializers."""
        return sum(
            int(math.prod(value.shape.numpy()) * value.dtype.itemsize)
            for value in self.model.graph.initializers.values()
            if isinstance(value.shape, ir.Shape) and value.dtype is not None
        )


def build_graph(config: ModelConfig, dense: DenseFormat = FLOAT32) -> DenseGraph:
    """Build the dense graph of the cpu profile, with weights in a format.

    Raises:
        ConfigError: ONNX Runtime's attention operator does not take this model.
    """
    if config.head_dim % _HEAD_DIM_UNIT:
        raise ConfigError(
            f"head_dim is {config.head_dim}, expected a multiple of {_HEAD_DIM_UNIT}: "
            "ONNX Runtime's GroupQueryAttention rotates no other sizes"
        )
    inputs, outputs = graph_inputs(config, dense.kv_dtype), graph_outputs(config, dense.kv_dtype)
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

    decoder = LookupExpertForCausalLM(config, dense)
    logits, presents = decoder(
        builder.op,
        values["inputs_embeds"],
        [layer_inputs(layer) for layer in range(config.num_hidden_layers)],
        values["logits_to_keep"],
    )
    results = [logits, *(value for present in presents for value in present)]
    for info, value in zip(outputs, results, strict=True):
        value.shape, value.dtype = ir.Shape(info.shape), _DTYPES[info.dtype]
        builder.add_output(value, info.name)
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="molkv-export")
    linears = {name: module for name, module in decoder.named_modules() if isinstance(module, Linear)}
    return DenseGraph(model, inputs, outputs, linears)
