"""Dense graphs of the toy family: for calls of any length (profile cpu) and for one position (profile nnapi)."""

from __future__ import annotations

from typing import Any, NamedTuple

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_bundle import KVDtype, graph_interface
from molkv_export.graph.build import BuiltGraph, Frame
from molkv_export.graph.cpu import RMSNorm, RotaryCache
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.static.layers import Rotary
from molkv_export.graph.static.modules import StaticModules
from molkv_export.modeling import tap_name
from tests.molkv_export.toy_family.config import SHARED, ToyConfig


class _New(NamedTuple):
    """New keys and values of one layer, packed or static, and its cache, for layers that share them."""

    shared: Any
    present: tuple[Value, Value]


class _Attention(nn.Module):
    """The products of attention. A layer that shares keys and values has no products for them."""

    def __init__(self, config: ToyConfig, layer: int, modules: Any) -> None:
        super().__init__()
        self.config, self.layer, self.size = config, layer, config.head_dim_of(layer)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.shares = layer == SHARED
        if self.shares:
            self.q_proj = modules.linear(config.hidden_size, self.heads * self.size)
        else:
            self.qkv_proj = modules.linear(config.hidden_size, (self.heads + 2 * self.groups) * self.size)
        self.o_proj = modules.linear(self.heads * self.size, config.hidden_size)


class _CpuAttention(_Attention):
    """Attention as GroupQueryAttention. A layer that shares keys and values gets those of layer 0 again."""

    def __init__(self, config: ToyConfig, layer: int, modules: Any) -> None:
        super().__init__(config, layer, modules)
        self.rotary: RotaryCache = modules.wide_rotary if layer == 1 else modules.rotary

    def forward(self, op: OpBuilder, x: Value, values: dict[str, Value], shared: Value | None) -> tuple[Value, _New]:
        if self.shares:
            packed = op.Concat(self.q_proj(op, x), shared, axis=-1)
        else:
            packed = self.qkv_proj(op, x)
            shared = op.Slice(packed, [self.heads * self.size], [2**31 - 1], [2], [1])
        source = 0 if self.shares else self.layer
        out, key, value = op.GroupQueryAttention(
            packed,
            None,
            None,
            *(values[f"past_key_values.{source}.{kind}"] for kind in ("key", "value")),
            values["seqlens_k"],
            values["total_sequence_length"],
            *self.rotary.tables(op, self.size),
            num_heads=self.heads,
            kv_num_heads=self.groups,
            do_rotary=1,
            _domain="com.microsoft",
            _version=1,
            _outputs=3,
        )
        return self.o_proj(op, out), _New(shared, (key, value))


class _StaticAttention(_Attention):
    """Attention in plain operators, for one position."""

    def forward(self, op: OpBuilder, x: Value, values: dict[str, Value], shared: Any) -> tuple[Value, _New]:
        name = "wide_rotary" if self.layer == 1 else "rotary"
        rotary = Rotary(values[f"{name}_cos"], values[f"{name}_sin"])
        if self.shares:
            query = rotary(op, op.Reshape(self.q_proj(op, x), [1, self.heads, self.size]), self.size, last=2)
        else:
            heads = op.Reshape(self.qkv_proj(op, x), [1, self.heads + 2 * self.groups, self.size])
            turned = rotary(op, op.Slice(heads, [0], [self.heads + self.groups], [1], [1]), self.size, last=2)
            query = op.Slice(turned, [0], [self.heads], [1], [1])
            key = op.Slice(turned, [self.heads], [self.heads + self.groups], [1], [1])
            value = op.Slice(heads, [self.heads + self.groups], [self.heads + 2 * self.groups], [1], [1])
            shared = op.Transpose(key, perm=[1, 2, 0]), op.Transpose(value, perm=[1, 0, 2])
        source = 0 if self.shares else self.layer
        past_key, past_value = (values[f"past_key_values.{source}.{kind}"] for kind in ("key", "value"))
        new_key, new_value = shared
        query = op.Reshape(query, [self.groups, self.heads // self.groups, self.size])
        query = op.Mul(query, self.size**-0.5)
        scores = op.Concat(op.MatMul(query, past_key), op.MatMul(query, new_key), axis=-1)
        weights = op.Softmax(op.Add(scores, values["attention_mask"]), axis=-1)
        context = self.config.max_position_embeddings
        out = op.Add(
            op.MatMul(op.Slice(weights, [0], [context], [2], [1]), past_value),
            op.MatMul(op.Slice(weights, [context], [context + 1], [2], [1]), new_value),
        )
        return self.o_proj(op, op.Reshape(out, [1, self.heads * self.size])), _New(shared, shared)


class _Gate(nn.Module):
    """The expert branch up(silu(gate(b)) * p)."""

    def __init__(self, config: ToyConfig, modules: Any) -> None:
        super().__init__()
        self.gate_proj = modules.linear(config.hidden_size, config.hidden_size_per_layer_input)
        self.up_proj = modules.linear(config.hidden_size_per_layer_input, config.hidden_size)

    def forward(self, op: OpBuilder, b: Value, vector: Value) -> Value:
        gate = self.gate_proj(op, b)
        out: Value = self.up_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), vector))
        return out


class _Layer(nn.Module):
    """One layer. Its values have the names of the reference model's taps."""

    def __init__(self, config: ToyConfig, layer: int, modules: Any) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = modules.norm(config.hidden_size)
        self.self_attn = modules.attention(config, layer, modules)
        self.per_layer_gate = _Gate(config, modules)

    def forward(self, op: OpBuilder, x: Value, values: dict[str, Value], shared: Any) -> tuple[Value, _New]:
        normed, _ = self.input_layernorm(op, x)
        attended, new = self.self_attn(op, normed, values, shared)
        b = op.Add(x, attended)
        gated = self.per_layer_gate(op, b, values[f"expert_vector.{self.layer}"])
        attended.name, gated.name = tap_name("attention", self.layer), tap_name("gated_vector", self.layer)
        y = op.Add(b, gated)
        return y, new


class _Decoder(nn.Module):
    """All layers and the final norm."""

    def __init__(self, config: ToyConfig, modules: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, layer, modules) for layer in range(config.num_hidden_layers)])
        self.norm = modules.norm(config.hidden_size)

    def forward(self, op: OpBuilder, values: dict[str, Value]) -> tuple[Value, list[Value]]:
        x, shared, presents = values["inputs_embeds"], None, []
        for index, layer in enumerate(self.layers):
            x, new = layer(op, x, values, shared)
            shared = new.shared if index == 0 else shared
            presents += [] if index == SHARED else new.present
            if index + 1 < len(self.layers):
                x.name = tap_name("residual", index + 1)
        if "logits_to_keep" in values:
            start = op.Sub(op.Shape(x, start=1, end=2), values["logits_to_keep"])
            x = op.Slice(x, start, [2**31 - 1], [1])
        normed, _ = self.norm(op, x)
        normed.name = tap_name("norm")
        return normed, presents


class _Model(nn.Module):
    """The whole graph, from embeddings and vectors to logits."""

    def __init__(self, config: ToyConfig, modules: Any) -> None:
        super().__init__()
        self.model = _Decoder(config, modules)
        self.lm_head = modules.head(config.hidden_size, config.vocab_size)

    def forward(self, op: OpBuilder, values: dict[str, Value]) -> list[Value]:
        hidden, presents = self.model(op, values)
        return [self.lm_head(op, hidden), *presents]


class _CpuModules:
    """Modules of the cpu profile."""

    attention = _CpuAttention

    def __init__(self, config: ToyConfig, dense: DenseFormat) -> None:
        self._config, self.linear, self.head = config, dense.linear, dense.head
        self.rotary = RotaryCache(config.max_position_embeddings, config.rope_theta)
        self.wide_rotary = RotaryCache(config.max_position_embeddings, config.wide_rope_theta)

    def norm(self, size: int) -> RMSNorm:
        return RMSNorm(size, self._config.rms_norm_eps)


def build_toy_graph(config: ToyConfig, dense: DenseFormat) -> BuiltGraph:
    """Build the graph of the cpu profile."""
    frame = Frame(*graph_interface(config, dense.kv_dtype))
    model = _Model(config, _CpuModules(config, dense))
    return frame.finish(model, model(frame.op, frame.values))


def build_static_toy_graph(
    config: ToyConfig, make_modules: type[StaticModules], kv_dtype: KVDtype, length: int
) -> BuiltGraph:
    """Build the graph for one position."""
    assert length == 1
    frame = Frame(*graph_interface(config, kv_dtype, length))
    modules: Any = make_modules(config, length)  # type: ignore[arg-type]
    modules.attention = _StaticAttention
    model = _Model(config, modules)
    return frame.finish(model, model(frame.op, frame.values))
