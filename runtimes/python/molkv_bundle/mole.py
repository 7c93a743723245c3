"""MoLE (arXiv 2503.15798): a position mixes the experts of its own token."""

from __future__ import annotations

from typing import Literal

from molkv_bundle.config import TensorInfo, Vector
from molkv_bundle.lookup_experts import LookupExpertConfig


class MoleConfig(LookupExpertConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of a MoLE model. The experts of a token in one layer are values [N, d]."""

    model_type: Literal["mole"]

    def record_vectors(self) -> tuple[Vector, ...]:
        """Return the only vector: the values [N, d]."""
        return (Vector("value", (self.num_experts, self.hidden_size), "scale"),)

    def expert_inputs(self) -> list[TensorInfo]:
        """Return one input for each layer: the values [B, T, N, d] of each position's token."""
        shape = ("batch", "length", self.num_experts, self.hidden_size)
        layers = self.layers_with_experts
        return [TensorInfo(name=f"expert_value.{layer}", dtype="float32", shape=shape) for layer in layers]

    def static_expert_inputs(self, layers: list[int], length: int) -> dict[str, tuple[int, ...]]:
        """Return the shape [T, N, d] of the values, for each layer."""
        return {f"expert_value.{layer}": (length, self.num_experts, self.hidden_size) for layer in layers}
