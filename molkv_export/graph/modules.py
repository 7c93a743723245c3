"""What the decoder is put together from; every profile brings its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx_ir as ir
from onnx_ir import Value
from onnxscript import OpBuilder, nn

from molkv_export.graph.linear import Linear


class Modules(Protocol):
    """Makes modules with the signatures of those in this folder, of the operators and shapes that a profile takes."""

    @property
    def dtype(self) -> ir.DataType:
        """What the graph computes in."""

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product that is computed for every position."""

    def head(self, in_features: int, out_features: int) -> Linear:
        """Make the LM head."""

    def small_linear(self, in_features: int, out_features: int) -> Linear:
        """Make a product that is not worth quantizing."""

    def norm(self, size: int) -> nn.Module:
        """Make an `RMSNorm`."""

    def attention(self) -> nn.Module:
        """Make an `Attention`."""

    def gelu(self, op: OpBuilder, x: Value) -> Value:
        """Compute x * Phi(x)."""


class Experts(Protocol):
    """How the experts of a family enter the layers of one graph."""

    def mixer(self) -> nn.Module:
        """Make what mixes the experts of one layer.

        Called with the normed residual stream and this layer's inputs, it returns what is added to the feed-forward
        network's output, and the scores of the experts.
        """

    def inputs(self, values: Mapping[str, Value], layer: int) -> Any:
        """Choose, of the graph's inputs by name, those that the mixer of a layer reads."""
