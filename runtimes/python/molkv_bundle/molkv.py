"""MoLKV (arXiv 2512.09723): a position attends to the key-value experts of the last W tokens."""

from __future__ import annotations

from typing import Literal

from molkv_bundle.config import Rotation, TensorInfo, Vector, WindowDtype, check_even
from molkv_bundle.errors import ConfigError
from molkv_bundle.lookup_experts import LookupExpertConfig


class MolkvConfig(LookupExpertConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of a MoLKV model. The experts of a token in one layer are keys [N, dk] and values [N, d]."""

    model_type: Literal["molkv"]

    def _check_relations(self) -> None:
        for name in ("expert_key_size", "expert_window"):
            if self.layers_with_experts and not 0 < getattr(self, name) < 2**31:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected 1 or more in a molkv model")
        super()._check_relations()
        if self.layers_with_experts and self.expert_rope:
            check_even(self, "expert_key_size")

    @property
    def attended_positions(self) -> int:
        """The window size W; 0 if no layer has experts."""
        return self.expert_window if self.layers_with_experts else 0

    @property
    def window_dtypes(self) -> tuple[WindowDtype, ...]:
        """The dtype float32, and also int8 if a layer has experts."""
        return ("float32", "int8") if self.layers_with_experts else ("float32",)

    def record_vectors(self) -> tuple[Vector, ...]:
        """Return the keys [N, dk], which are never quantized, and the values [N, d]."""
        count = self.num_experts
        return Vector("key", (count, self.expert_key_size)), Vector("value", (count, self.hidden_size), "scale")

    def expert_inputs(self) -> list[TensorInfo]:
        """Return the inputs for positions, the mask of visible experts, and the experts of the windows."""
        return self._window_inputs("float32")

    def int8_window_inputs(self) -> list[TensorInfo]:
        """Return the inputs of `expert_inputs` with int8 values. The scales of a layer follow its values."""
        return self._window_inputs("int8")

    def _window_inputs(self, dtype: WindowDtype) -> list[TensorInfo]:
        if not self.layers_with_experts:
            return []
        found = [
            TensorInfo(name="position_ids", dtype="int64", shape=("batch", "length")),
            TensorInfo(name="expert_mask", dtype="float32", shape=("blocks", "block_length", "window_experts")),
        ]
        for layer in self.layers_with_experts:
            key, value = (
                ("blocks", "window_experts", self.expert_key_size),
                ("blocks", "window_experts", self.hidden_size),
            )
            found.append(TensorInfo(name=f"expert_key.{layer}", dtype="float32", shape=key))
            found.append(TensorInfo(name=f"expert_value.{layer}", dtype=dtype, shape=value))
            if dtype == "int8":
                scale = ("blocks", 1, "window_experts")
                found.append(TensorInfo(name=f"expert_value_scale.{layer}", dtype="float32", shape=scale))
        return found

    def static_expert_inputs(self, layers: list[int], length: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the query rotations, the mask and the experts.

        Experts have the shape [1, R*N, size] with R = T + W - 1.
        """
        if not layers:
            return {}
        shapes: dict[str, tuple[int, ...]] = {}
        if self.expert_rope:
            shapes |= dict.fromkeys(("expert_rotary_cos", "expert_rotary_sin"), (length, self.expert_key_size))
        visible = (length + self.expert_window - 1) * self.num_experts
        shapes["expert_mask"] = (1, length, visible)
        for layer in layers:
            shapes[f"expert_key.{layer}"] = (1, visible, self.expert_key_size)
            shapes[f"expert_value.{layer}"] = (1, visible, self.hidden_size)
        return shapes

    def rotations(self) -> dict[str, Rotation]:
        """Return the rotation of attention and, if `expert_rope` is set, the rotation of expert queries."""
        if not (self.layers_with_experts and self.expert_rope):
            return super().rotations()
        return {**super().rotations(), "expert_rotary": Rotation(self.expert_key_size, self.rope_theta)}
