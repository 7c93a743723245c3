"""The dense part of the decoder of MoLE and MoLKV, and the interfaces of the modules that a profile or family adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.linear import Linear
from molkv_export.modeling import tap_name


class Modules(Protocol):
    """A factory of a profile's modules, which use only operators and shapes that the profile supports.

    The modules have the signatures of those in `graph/cpu.py`.
    """

    @property
    def dtype(self) -> ir.DataType:
        """The dtype in which the graph computes."""

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product with a weight of the profile's dtype."""

    def head(self, in_features: int, out_features: int) -> Linear:
        """Create the LM head."""

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product whose weight is too small to be worth quantizing."""

    def norm(self, size: int) -> nn.Module:
        """Create an `RMSNorm`."""

    def attention(self) -> nn.Module:
        """Create an `Attention`."""

    def feed_forward(self) -> nn.Module:
        """Create the feed-forward network of one layer, as `config.hidden_act` says."""


MakeMixer = Callable[[], nn.Module]
"""A function that creates the mixer of one layer.

A mixer is called with the normed residual stream, the graph's inputs by name and the layer's index. The mixer returns
the mixed experts, which are added to the feed-forward network's output, and the scores of the experts.
"""


class LayerInputs(NamedTuple):
    """The inputs of one layer besides the residual stream."""

    cache: Any  # the KV cache, of the type that the profile's attention takes
    values: Mapping[str, Value]  # the graph's inputs by name


class DecoderLayer(nn.Module):
    """A pre-norm layer: h = x + Attention(RMSNorm(x)); n = RMSNorm(h); y = h + FFN(n) + Mixer(n, experts).

    A layer returns h and the branch FFN(n) + Mixer(n, experts), and does not add them: the norm of the next layer fuses
    this addition.
    """

    def __init__(self, config: LookupExpertConfig, modules: Modules, make_mixer: MakeMixer, index: int) -> None:
        super().__init__()
        self.index = index
        self.input_layernorm = modules.norm(config.hidden_size)
        self.self_attn = modules.attention()
        self.post_attention_layernorm = modules.norm(config.hidden_size)
        self.mlp = modules.feed_forward()
        self.expert_mixer = make_mixer() if index in config.layers_with_experts else None

    def forward(
        self, op: OpBuilder, x: Value, branch: Value | None, inputs: LayerInputs
    ) -> tuple[Value, Value, Value, Value]:
        """Return h, this layer's branch, and the present key and value. The layer's input is x + `branch`."""
        normed, x = self.input_layernorm(op, x, branch)
        attended, present_key, present_value = self.self_attn(op, normed, inputs.cache)
        n, h = self.post_attention_layernorm(op, x, attended)
        branch = feed_forward = self.mlp(op, n)
        taps: dict[str, Value] = {
            "input_norm": normed,
            "attention": attended,
            "post_attention_norm": n,
            "feed_forward": feed_forward,
        }
        if self.index > 0:  # the residual stream of layer 0 is an input of the graph
            taps["residual"] = x
        if self.expert_mixer is not None:
            taps["experts"], taps["expert_scores"] = self.expert_mixer(op, n, inputs.values, self.index)
            branch = op.Add(feed_forward, taps["experts"])
        for tap, value in taps.items():
            value.name = tap_name(tap, self.index)
        return h, branch, present_key, present_value


class Decoder(nn.Module):
    """The layers and the final norm; the input embedding is part of the records."""

    def __init__(self, config: LookupExpertConfig, modules: Modules, make_mixer: MakeMixer) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([DecoderLayer(config, modules, make_mixer, index) for index in layers])
        self.norm = modules.norm(config.hidden_size)

    def forward(
        self, op: OpBuilder, x: Value, layer_inputs: list[LayerInputs], last: Value | None
    ) -> tuple[Value, list[tuple[Value, Value]]]:
        """Return the final norm's output and every layer's present key and value.

        `last` (int64 [1], 0 to T) is the number of final positions for which the norm is computed; None: all positions.
        """
        branch = None
        presents = []
        ends = None if last is None else (op.Sub(op.Shape(x, start=1, end=2), last), [2**31 - 1])
        for layer, inputs in zip(self.layers, layer_inputs, strict=True):
            x, branch, key, value = layer(op, x, branch, inputs)
            presents.append((key, value))
        if ends is not None:
            x, branch = (op.Slice(part, *ends, [1]) for part in (x, branch))
        normed, residual = self.norm(op, x, branch)
        residual.name, normed.name = tap_name("residual"), tap_name("norm")
        return normed, presents


class LookupExpertForCausalLM(nn.Module):
    """The dense graph of MoLE and MoLKV; it computes logits from embeddings and experts."""

    def __init__(self, config: LookupExpertConfig, modules: Modules, make_mixer: MakeMixer) -> None:
        super().__init__()
        self.model = Decoder(config, modules, make_mixer)
        self.lm_head = modules.head(config.hidden_size, config.vocab_size)

    def forward(
        self, op: OpBuilder, inputs_embeds: Value, layer_inputs: list[LayerInputs], last: Value | None
    ) -> tuple[Value, list[tuple[Value, Value]]]:
        """Return the logits [..., vocab_size] of the last positions, and every layer's present key and value."""
        hidden, presents = self.model(op, inputs_embeds, layer_inputs, last)
        return self.lm_head(op, hidden), presents
