"""Assembling the graphs of a static profile."""

from __future__ import annotations

import onnx_ir as ir

from molkv_bundle import KVDtype, ModelConfig, computed_layers, graph_interface
from molkv_export.graph.build import DenseGraph, Frame
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.mole import MoleInputs
from molkv_export.graph.static.attention import StaticCache
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.molkv import StaticMolkvInputs
from molkv_export.graph.static.prefill import PrefillModel
from molkv_export.graph.static.rope import Rotary


def build_static_graph(config: ModelConfig, modules: StaticModules, kv_dtype: KVDtype, length: int) -> DenseGraph:
    """Build the graph for calls of one length.

    Args:
        config: The model, with the context and the window that the graph is to have.
        modules: What it is put together from, for this length.
        kv_dtype: Of inputs, of the KV cache, and of everything that is computed.
        length: T. The graph for 1 gives logits; of longer calls nobody wants any: a prompt's last token is a call of
            its own.
    """
    frame = Frame(*graph_interface(config, kv_dtype, length))
    values = frame.values
    rotary = Rotary(values["rotary_cos"], values["rotary_sin"])
    expert_rotary = None
    if "expert_rotary_cos" in values:
        expert_rotary = Rotary(values["expert_rotary_cos"], values["expert_rotary_sin"])

    def layer_inputs(layer: int) -> LayerInputs:
        key, value = (values[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value"))
        cache = StaticCache(key, value, values["attention_mask"], rotary)
        if layer not in config.layers_with_experts:
            return LayerInputs(cache, None)
        value = values[f"expert_value.{layer}"]
        if not config.has_keys:
            return LayerInputs(cache, MoleInputs(value))
        key = values[f"expert_key.{layer}"]
        return LayerInputs(cache, StaticMolkvInputs(key, value, values["expert_mask"], expert_rotary))

    layers = [layer_inputs(layer) for layer in computed_layers(config, length)]
    if length > 1:
        prefill = PrefillModel(config, modules)
        new = prefill(frame.op, values["inputs_embeds"], layers, rotary)
        return frame.finish(prefill, [value for pair in new for value in pair])
    decoder = LookupExpertForCausalLM(config, modules)
    logits, new = decoder(frame.op, values["inputs_embeds"], layers, None)
    if kv_dtype != "float32":
        logits = frame.op.Cast(logits, to=ir.DataType.FLOAT)
    return frame.finish(decoder, [logits, *(value for pair in new for value in pair)])
