"""The modules of the static profiles. The profiles differ only in a few small modules."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.constants import FLOAT, HALF, Constants
from molkv_export.graph.feed_forward import FeedForward, GatedFeedForward
from molkv_export.graph.linear import HalfComputeLinear, Linear
from molkv_export.graph.static.attention import KeysAndValues, StaticAttention
from molkv_export.graph.static.layers import (
    HalfRMSNorm,
    QdqLinear,
    SplitQkv,
    StaticRMSNorm,
    gelu_by_exp,
)


class StaticModules:
    """The implementation of `Modules` for static profiles, in float32."""

    constant: Constants = FLOAT

    def __init__(self, config: LookupExpertConfig, length: int) -> None:
        """Store the configuration of the graph and the number of positions of a call, T.

        The configuration has the graph's context length and expert window, which may be shorter than the model's.
        """
        self._config, self.length = config, length

    @property
    def dtype(self) -> ir.DataType:
        """The dtype in which the graph computes."""
        return self.constant.dtype

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product of two-dimensional tensors."""
        return Linear(in_features, out_features)

    def head(self, in_features: int, out_features: int) -> Linear:
        """Create the LM head."""
        return self.linear(in_features, out_features)

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product whose weight is too small to be worth quantizing."""
        return self.linear(in_features, out_features)

    def qkv(self) -> Linear | SplitQkv:
        """Create the product that computes query, key and value, concatenated."""
        config = self._config
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        return self.linear(config.hidden_size, heads * config.head_dim)

    def norm(self, size: int) -> StaticRMSNorm:
        """Create an RMSNorm out of plain operators."""
        return StaticRMSNorm(size, self._config.rms_norm_eps, self.constant)

    def attention(self) -> StaticAttention:
        """Create attention over a cache of fixed length."""
        out = self.linear(self._config.num_attention_heads * self._config.head_dim, self._config.hidden_size)
        return StaticAttention(self._config, self.length, self.constant, self.qkv(), out)

    def keys_and_values(self) -> KeysAndValues:
        """Create the part of attention that computes keys and values only."""
        return KeysAndValues(self._config, self.length, self.qkv())

    def feed_forward(self) -> FeedForward | GatedFeedForward:
        """Create the feed-forward network of one layer."""
        if self._config.hidden_act == "gelu":
            return FeedForward(self._config, self.linear, self.gelu)
        return GatedFeedForward(self._config, self.linear)

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""
        return op.Gelu(x, approximate="none")


class HalfModules(StaticModules):
    """Modules that compute in float16, for Apple's Neural Engine, which supports no other dtype."""

    constant = HALF

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product in float16."""
        return HalfComputeLinear(in_features, out_features)

    def norm(self, size: int) -> HalfRMSNorm:
        """Create an RMSNorm that does not overflow in float16."""
        return HalfRMSNorm(size, self._config.rms_norm_eps, self.constant)


class NnapiModules(StaticModules):
    """Modules in float32 for NNAPI."""

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x) with an error of at most 1.5e-7 |x|: NNAPI has neither Gelu nor Erf."""
        return gelu_by_exp(op, x, self.constant)


class QdqModules(NnapiModules):
    """Modules in int8 for NNAPI. The LM head is float32, since in int8 its output would have only 256 levels."""

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product with int8 weights and uint8 activations."""
        return QdqLinear(in_features, out_features)

    def head(self, in_features: int, out_features: int) -> Linear:
        """Create the LM head, in float32."""
        return Linear(in_features, out_features)

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product in float32; its weight is too small to be worth quantizing."""
        return Linear(in_features, out_features)

    def qkv(self) -> SplitQkv:
        """Create the three products for query, key and value, each with its own scale."""
        config = self._config
        sizes = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        return SplitQkv(*(self.linear(config.hidden_size, heads * config.head_dim) for heads in sizes))
