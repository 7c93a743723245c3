"""Building the graphs of a static profile: the whole decoder, and a smaller graph for chunks of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import KVDtype, LookupExpertConfig, graph_interface
from molkv_export.graph.build import BuiltGraph, Frame
from molkv_export.graph.decoder import DecoderLayer, LayerInputs, LookupExpertForCausalLM, MakeMixer
from molkv_export.graph.static.attention import StaticCache
from molkv_export.graph.static.layers import Rotary
from molkv_export.graph.static.modules import StaticModules


class KeyValueLayer(nn.Module):
    """The last layer of a prefill graph: it computes only the keys and values for the KV cache."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules) -> None:
        super().__init__()
        self.input_layernorm = modules.norm(config.hidden_size)
        self.self_attn = modules.keys_and_values()

    def forward(self, op: OpBuilder, x: Value, branch: Value | None, rotary: Rotary) -> tuple[Value, Value]:
        """Return the new keys and values; the layer's input is x + `branch`."""
        normed, _ = self.input_layernorm(op, x, branch)
        key, value = self.self_attn(op, normed, rotary)
        return key, value


class PrefillDecoder(nn.Module):
    """The decoder of a prefill graph: all layers, but the last layer computes only keys and values."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules, make_mixer: MakeMixer) -> None:
        super().__init__()
        last = config.num_hidden_layers - 1
        layers = [DecoderLayer(config, modules, make_mixer, index) for index in range(last)]
        self.layers = nn.ModuleList([*layers, KeyValueLayer(config, modules)])

    def forward(
        self, op: OpBuilder, x: Value, layer_inputs: list[LayerInputs], rotary: Rotary
    ) -> list[tuple[Value, Value]]:
        """Return every layer's new keys and values; `layer_inputs` has one entry for every layer except the last."""
        branch, new = None, []
        *layers, last = self.layers
        for layer, inputs in zip(layers, layer_inputs, strict=True):
            x, branch, key, value = layer(op, x, branch, inputs)
            new.append((key, value))
        return [*new, last(op, x, branch, rotary)]


class PrefillModel(nn.Module):
    """A prefill graph. It wraps the decoder, since names of weights in the checkpoint begin with "model."."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules, make_mixer: MakeMixer) -> None:
        super().__init__()
        self.model = PrefillDecoder(config, modules, make_mixer)

    def forward(
        self, op: OpBuilder, x: Value, layer_inputs: list[LayerInputs], rotary: Rotary
    ) -> list[tuple[Value, Value]]:
        """Return every layer's new keys and values."""
        new: list[tuple[Value, Value]] = self.model(op, x, layer_inputs, rotary)
        return new


def build_static_graph(
    config: LookupExpertConfig,
    make_modules: type[StaticModules],
    kv_dtype: KVDtype,
    length: int,
    mixer: Callable[[Any, StaticModules], nn.Module],
) -> BuiltGraph:
    """Build the graph for calls of one length.

    Args:
        config: The model's configuration, with the context length and the expert window of the graph.
        make_modules: The modules of the profile.
        kv_dtype: Dtype of the inputs, of the KV cache, and of the computation.
        length: T, the number of positions of a call. The graph for length 1 returns logits. Graphs for longer calls
            process chunks of a prompt and return no logits, since the prompt's last token is a call of length 1.
        mixer: A function that creates the mixer of one layer (see `decoder.MakeMixer`) from configuration and modules.
    """
    frame = Frame(*graph_interface(config, kv_dtype, length))
    values = frame.values
    rotary = Rotary(values["rotary_cos"], values["rotary_sin"])
    modules = make_modules(config, length)
    make_mixer = partial(mixer, config, modules)

    def layer_inputs(layer: int) -> LayerInputs:
        key, value = (values[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value"))
        cache = StaticCache(key, value, values["attention_mask"], rotary)
        return LayerInputs(cache, values)

    layers = [layer_inputs(layer) for layer in config.computed_layers(length)]
    if length > 1:
        prefill = PrefillModel(config, modules, make_mixer)
        new = prefill(frame.op, values["inputs_embeds"], layers, rotary)
        return frame.finish(prefill, [value for pair in new for value in pair])
    decoder = LookupExpertForCausalLM(config, modules, make_mixer)
    logits, new = decoder(frame.op, values["inputs_embeds"], layers, None)
    if kv_dtype != "float32":
        logits = frame.op.Cast(logits, to=ir.DataType.FLOAT)
    return frame.finish(decoder, [logits, *(value for pair in new for value in pair)])
