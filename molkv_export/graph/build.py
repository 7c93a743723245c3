"""Building the dense graph of the cpu profile."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from molkv_bundle import ConfigError, LookupExpertConfig, ModelConfig, TensorInfo, Tensors, graph_interface
from molkv_export.graph.cpu import CpuModules, KVCache
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.linear import DenseFormat, Linear

OPSET = 22
IR_VERSION = 10

_HEAD_DIM_UNIT = 16
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
}


class BuiltGraph(NamedTuple):
    """A dense graph, before `attach_weights` gives data to its initializers."""

    model: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    linears: dict[str, Linear]  # by name; the method `encode` converts a weight to initializers

    @property
    def nbytes(self) -> int:
        """Size of all initializers, in bytes."""
        return sum(
            int(math.prod(value.shape.numpy()) * value.dtype.itemsize)
            for value in self.model.graph.initializers.values()
            if isinstance(value.shape, ir.Shape) and value.dtype is not None
        )


class GraphPlan(NamedTuple):
    """The graphs of one profile, before they have weights."""

    profile: str
    config: ModelConfig  # with the context length and the expert window of the graphs
    dense: DenseFormat
    graphs: dict[int, BuiltGraph]  # by the length of a call; 0: any length

    @property
    def weights(self) -> list[int]:
        """Size in bytes of each large weight in float32."""
        return [4 * math.prod(linear.shape) for linear in self.graphs[min(self.graphs)].linears.values()]

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes; all graphs share one file of weights."""
        return self.graphs[min(self.graphs)].nbytes


def build_graph(
    config: LookupExpertConfig, dense: DenseFormat, mixer: Callable[[Any, CpuModules], nn.Module]
) -> BuiltGraph:
    """Build the dense graph of the cpu profile for a model with the decoder of MoLE and MoLKV.

    Args:
        config: The model's configuration.
        dense: The dtypes of large weights and caches.
        mixer: A function that creates the mixer of one layer (see `decoder.MakeMixer`) from configuration and modules.

    Raises:
        ConfigError: ONNX Runtime's attention operator does not support this model.
    """
    check_head_size("head_dim", config.head_dim)
    interface = graph_interface(config, dense.kv_dtype, window_dtype=dense.window_dtype)
    frame, modules = Frame(*interface), CpuModules(config, dense)
    values = frame.values

    def layer_inputs(layer: int) -> LayerInputs:
        cache = KVCache(
            values[f"past_key_values.{layer}.key"],
            values[f"past_key_values.{layer}.value"],
            values["seqlens_k"],
            values["total_sequence_length"],
        )
        return LayerInputs(cache, values)

    decoder = LookupExpertForCausalLM(config, modules, partial(mixer, config, modules))
    logits, presents = decoder(
        frame.op,
        values["inputs_embeds"],
        [layer_inputs(layer) for layer in range(config.num_hidden_layers)],
        values["logits_to_keep"],
    )
    return frame.finish(decoder, [logits, *(value for present in presents for value in present)])


def check_head_size(name: str, size: int) -> None:
    """Check the size of heads, which is the field `name` of the configuration.

    Raises:
        ConfigError: ONNX Runtime's attention operator does not support this size.
    """
    if size % _HEAD_DIM_UNIT:
        raise ConfigError(
            f"{name} is {size}, expected a multiple of {_HEAD_DIM_UNIT}: "
            "ONNX Runtime's GroupQueryAttention supports no other sizes"
        )


class Frame:
    """A new graph that has its inputs, but no nodes or outputs yet."""

    def __init__(self, inputs: Tensors, outputs: Tensors) -> None:
        self._inputs, self._outputs = inputs, outputs
        graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET}, name="dense_graph")
        self._builder = GraphBuilder(graph)
        self.op = self._builder.op
        self.values = {info.name: self._builder.input(info.name, DTYPES[info.dtype], info.shape) for info in inputs}

    def finish(self, model: nn.Module, results: list[ir.Value]) -> BuiltGraph:
        """Make `results` the outputs of the graph, and return the graph; `model` is the module with all weights."""
        for info, value in zip(self._outputs, results, strict=True):
            value.shape, value.dtype = ir.Shape(info.shape), DTYPES[info.dtype]
            self._builder.add_output(value, info.name)
        graph = self._builder.graph
        for domain in {node.domain for node in graph} - {""}:
            graph.opset_imports[domain] = 1
        linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        whole = ir.Model(graph, ir_version=IR_VERSION, producer_name="molkv-export")
        return BuiltGraph(whole, self._inputs, self._outputs, linears)
