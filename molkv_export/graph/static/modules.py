"""The static profiles' modules: one design, in which profiles differ by a few small parts."""

from __future__ import annotations

from onnx_ir import Value
from onnxscript import OpBuilder

from molkv_bundle import ModelConfig
from molkv_export.graph.linear import HalfComputeLinear, Linear
from molkv_export.graph.mole import MoleMixer
from molkv_export.graph.static.attention import KeysAndValues, StaticAttention
from molkv_export.graph.static.gelu import gelu_by_exp
from molkv_export.graph.static.molkv import StaticMolkvMixer
from molkv_export.graph.static.norm import HalfRMSNorm, StaticRMSNorm
from molkv_export.graph.static.number import FLOAT, HALF, Number
from molkv_export.graph.static.qdq import QdqLinear, SplitQkv


class StaticModules:
    """The `Modules` of a static profile, in float32."""

    number: Number = FLOAT

    def __init__(self, config: ModelConfig, length: int) -> None:
        """Take the model, with the context and the window that the graph is to have, and T."""
        self._config, self._length = config, length

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
        return StaticRMSNorm(size, self._config.rms_norm_eps, self.number)

    def attention(self) -> StaticAttention:
        """Make attention over a cache of fixed length."""
        out = self.linear(self._config.num_attention_heads * self._config.head_dim, self._config.hidden_size)
        return StaticAttention(self._config, self._length, self.number, self.qkv(), out)

    def keys_and_values(self) -> KeysAndValues:
        """Make what is left of attention where nobody attends."""
        return KeysAndValues(self._config, self._length, self.qkv())

    def expert_mixer(self) -> MoleMixer | StaticMolkvMixer:
        """Make the mixer that the model has."""
        config = self._config
        if not config.has_keys:
            return MoleMixer(self.small_linear(config.hidden_size, config.num_experts), self.number.dtype)
        return StaticMolkvMixer(
            config,
            self._length,
            self.number,
            self.linear(config.hidden_size, config.expert_key_size),
            self.norm(config.expert_key_size) if config.expert_qk_norm else None,
            self.small_linear(config.hidden_size, 1) if config.expert_gate == "sigmoid" else None,
        )

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""
        return op.Gelu(x, approximate="none")


class HalfModules(StaticModules):
    """Everything in float16, for Apple's Neural Engine, which computes in nothing else."""

    number = HALF

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product in float16."""
        return HalfComputeLinear(in_features, out_features)

    def norm(self, size: int) -> HalfRMSNorm:
        """Make a norm that no number is too large for."""
        return HalfRMSNorm(size, self._config.rms_norm_eps, self.number)


class NnapiModules(StaticModules):
    """float32 for NNAPI."""

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x) within 1.5e-7 |x|: NNAPI knows neither Gelu nor Erf."""
        return gelu_by_exp(op, x, self.number)


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
