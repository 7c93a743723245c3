"""The cpu profile: ONNX Runtime's own operators, any batch, any length."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder

from molkv_bundle import LookupExpertConfig
from molkv_export.graph.attention import Attention
from molkv_export.graph.linear import DenseFormat, Linear
from molkv_export.graph.norm import RMSNorm
from molkv_export.graph.rope import RotaryCache


class CpuModules:
    """The `Modules` of the cpu profile."""

    dtype = ir.DataType.FLOAT

    def __init__(self, config: LookupExpertConfig, dense: DenseFormat) -> None:
        self._config, self._dense = config, dense
        self.rotary = RotaryCache(config.max_position_embeddings, config.rope_theta)
        self.linear = dense.linear
        self.head = dense.head
        self.small_linear = Linear

    def norm(self, size: int) -> RMSNorm:
        """Make a norm that can be fused with the addition before it."""
        return RMSNorm(size, self._config.rms_norm_eps)

    def attention(self) -> Attention:
        """Make GroupQueryAttention."""
        return Attention(self._config, self._dense, self.rotary)

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""
        return op.Gelu(x, approximate="none")
