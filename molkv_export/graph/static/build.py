"""Assembling the graphs of a static profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from molkv_bundle import KVDtype, LookupExpertConfig, graph_interface
from molkv_export.graph.build import DenseGraph, Frame
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.modules import Experts
from molkv_export.graph.static.attention import StaticCache
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.prefill import PrefillModel
from molkv_export.graph.static.rope import Rotary


def build_static_graph(
    config: LookupExpertConfig,
    make_modules: type[StaticModules],
    kv_dtype: KVDtype,
    length: int,
    make_experts: Callable[[Any, StaticModules], Experts],
) -> DenseGraph:
    """Build the graph for calls of one length.

    Args:
        config: The model, with the context and the window that the graph is to have.
        make_modules: What it is put together from.
        kv_dtype: Of inputs, of the KV cache, and of everything that is computed.
        length: T. The graph for 1 gives logits; of longer calls nobody wants any: a prompt's last token is a call of
            its own.
        make_experts: Says how the experts enter the graph.
    """
    frame = Frame(*graph_interface(config, kv_dtype, length))
    values = frame.values
    rotary = Rotary(values["rotary_cos"], values["rotary_sin"])
    modules = make_modules(config, length)
    experts = make_experts(config, modules)

    def layer_inputs(layer: int) -> LayerInputs:
        key, value = (values[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value"))
        cache = StaticCache(key, value, values["attention_mask"], rotary)
        if layer not in config.layers_with_experts:
            return LayerInputs(cache, None)
        return LayerInputs(cache, experts.inputs(values, layer))

    layers = [layer_inputs(layer) for layer in config.computed_layers(length)]
    if length > 1:
        prefill = PrefillModel(config, modules, experts)
        new = prefill(frame.op, values["inputs_embeds"], layers, rotary)
        return frame.finish(prefill, [value for pair in new for value in pair])
    decoder = LookupExpertForCausalLM(config, modules, experts)
    logits, new = decoder(frame.op, values["inputs_embeds"], layers, None)
    if kv_dtype != "float32":
        logits = frame.op.Cast(logits, to=ir.DataType.FLOAT)
    return frame.finish(decoder, [logits, *(value for pair in new for value in pair)])
