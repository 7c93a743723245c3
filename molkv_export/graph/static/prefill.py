"""The decoder for a part of a prompt whose logits nobody asks for."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.decoder import DecoderLayer, LayerInputs
from molkv_export.graph.modules import Experts
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.rope import Rotary


class KeyValueLayer(nn.Module):
    """What is left of the last layer: the keys and values that later tokens attend to."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules) -> None:
        super().__init__()
        self.input_layernorm = modules.norm(config.hidden_size)
        self.self_attn = modules.keys_and_values()

    def forward(self, op: OpBuilder, x: Value, branch: Value | None, rotary: Rotary) -> tuple[Value, Value]:
        """Map (x, branch), whose sum is the residual stream, to the new keys and values."""
        normed, _ = self.input_layernorm(op, x, branch)
        key, value = self.self_attn(op, normed, rotary)
        return key, value


class PrefillDecoder(nn.Module):
    """All layers, for their keys and values; behind the last one's nothing is computed."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules, experts: Experts) -> None:
        super().__init__()
        last = config.num_hidden_layers - 1
        layers = [DecoderLayer(config, modules, experts, index) for index in range(last)]
        self.layers = nn.ModuleList([*layers, KeyValueLayer(config, modules)])

    def forward(
        self, op: OpBuilder, x: Value, layer_inputs: list[LayerInputs], rotary: Rotary
    ) -> list[tuple[Value, Value]]:
        """Give every layer's new keys and values; the last one needs no inputs."""
        branch, new = None, []
        *layers, last = self.layers
        for layer, inputs in zip(layers, layer_inputs, strict=True):
            x, branch, key, value = layer(op, x, branch, inputs)
            new.append((key, value))
        return [*new, last(op, x, branch, rotary)]


class PrefillModel(nn.Module):
    """The prefix of names that weights have in a checkpoint."""

    def __init__(self, config: LookupExpertConfig, modules: StaticModules, experts: Experts) -> None:
        super().__init__()
        self.model = PrefillDecoder(config, modules, experts)

    def forward(
        self, op: OpBuilder, x: Value, layer_inputs: list[LayerInputs], rotary: Rotary
    ) -> list[tuple[Value, Value]]:
        """Give every layer's new keys and values."""
        new: list[tuple[Value, Value]] = self.model(op, x, layer_inputs, rotary)
        return new
