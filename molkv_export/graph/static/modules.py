"""The static profiles' modules: one design, in which profiles differ by a few small parts."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.linear import HalfComputeLinear, Linear
from molkv_export.graph.static.attention import KeysAndValues, StaticAttention
from molkv_export.graph.static.layers import (
    FLOAT,
    HALF,
    Constants,
    HalfRMSNorm,
    QdqLinear,
    SplitQkv,
    StaticRMSNorm,
    gelu_by_exp,
)


class StaticModules:
    """The `Modules` of a static profile, in float32."""

    constant: Constants = FLOAT

    def __init__(self, config: LookupExpertConfig, length: int) -> None:
        """Take the model, with the context and the window that the graph is to have, and T."""
        self._config, self.length = config, length

    @property
    def dtype(self) -> ir.DataType:
        """What the graph computes in."""
        return self.constant.dtype

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product of two dimensions."""
        return Linear(in_features, out_features)

    def head(self, in_features: int, out_features: int) -> Linear:
        """Make the LM head."""
        return self.linear(in_features, out_features)

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product that is not worth quantizing."""
        return self.linear(in_features, out_features)

    def qkv(self) -> Linear | SplitQkv:
        """Make the products for query, key and value, side by side."""
        config = self._config
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        return self.linear(config.hidden_size, heads * config.head_dim)

    def norm(self, size: int) -> StaticRMSNorm:
        """Make a norm out of plain operators."""
        return StaticRMSNorm(size, self._config.rms_norm_eps, self.constant)

    def attention(self) -> StaticAttention:
        """Make attention over a cache of fixed length."""
        out = self.linear(self._config.num_attention_heads * self._config.head_dim, self._config.hidden_size)
        return StaticAttention(self._config, self.length, self.constant, self.qkv(), out)

    def keys_and_values(self) -> KeysAndValues:
        """Make what is left of attention where nobody attends."""
        return KeysAndValues(self._config, self.length, self.qkv())

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""
        return op.Gelu(x, approximate="none")


class HalfModules(StaticModules):
    """Everything in float16, for Apple's Neural Engine, which computes in nothing else."""

    constant = HALF

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product in float16."""
        return HalfComputeLinear(in_features, out_features)

    def norm(self, size: int) -> HalfRMSNorm:
        """Make a norm that no number is too large for."""
        return HalfRMSNorm(size, self._config.rms_norm_eps, self.constant)


class NnapiModules(StaticModules):
    """float32 for NNAPI."""

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x) within 1.5e-7 |x|: NNAPI knows neither Gelu nor Erf."""
        return gelu_by_exp(op, x, self.constant)


class QdqModules(NnapiModules):
    """int8 for NNAPI. The LM head stays float32: its output would get 256 levels, too few to tell tokens apart."""

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product of int8 by int8."""
        return QdqLinear(in_features, out_features)

    def head(self, in_features: int, out_features: int) -> Linear:
        """Make the LM head."""
        return Linear(in_features, out_features)

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product that is not worth quantizing."""
        return Linear(in_features, out_features)

    def qkv(self) -> SplitQkv:
        """Make the products for query, key and value, each with a scale."""
        config = self._config
        sizes = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        return SplitQkv(*(self.linear(config.hidden_size, heads * config.head_dim) for heads in sizes))
