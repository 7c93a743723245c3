"""What the decoder is put together from; every profile brings its own."""

from __future__ import annotations

from typing import Protocol

from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.linear import Linear


class Modules(Protocol):
    """Makes modules with the signatures of those in this folder, of the operators and shapes that a profile takes."""

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product that is computed for every position."""

    def head(self, in_features: int, out_features: int) -> Linear:
        """Make the LM head."""

    def norm(self, size: int) -> nn.Module:
        """Make an `RMSNorm`."""

    def attention(self) -> nn.Module:
        """Make an `Attention`."""

    def expert_mixer(self) -> nn.Module:
        """Make a `MoleMixer` or a `MolkvMixer`."""

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""
