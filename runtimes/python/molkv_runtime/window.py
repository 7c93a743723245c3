"""The expert window: the experts of the last W tokens of every sequence, in a ring per layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from molkv_runtime.config import ModelConfig
from molkv_runtime.record import Records
from molkv_runtime.rope import Floats, rotary_tables, rotate


class ExpertWindow:
    """Key-value experts of B sequences. Position p stands in slot p % W; the graph does not know the order.

    Keys are rotated by their position once, when they enter.
    """

    def __init__(self, config: ModelConfig, batch_size: int, max_length: int) -> None:
        self._layers = config.layers_with_experts
        self._num_experts = config.num_experts
        self._window = min(config.expert_window, max_length)  # a shorter sequence never fills the ring
        self.block_length = self._window
        slots = (batch_size, self._window * config.num_experts)
        # Zeros, not garbage: masked slots have weight 0, and 0 * NaN would still be NaN.
        self._keys = {i: np.zeros((*slots, config.expert_key_size), np.float32) for i in self._layers}
        self._values = {i: np.zeros((*slots, config.hidden_size), np.float32) for i in self._layers}
        self._mask = np.full((batch_size, 1, slots[1]), -np.inf, np.float32)
        self._rotary: tuple[Floats, Floats] | None = None
        if config.expert_rope:
            self._rotary = rotary_tables(np.arange(max_length), config.expert_key_size, config.rope_theta)
        self.decode_inputs: dict[str, npt.NDArray[np.generic]] = {
            "expert_mask": self._mask,
            **{f"expert_key.{layer}": keys for layer, keys in self._keys.items()},
            **{f"expert_value.{layer}": values for layer, values in self._values.items()},
        }

    def prefill(self, sequence: int, start: int, records: Records) -> dict[str, npt.NDArray[np.generic]]:
        """Take in T positions and give the graph's inputs for them.

        The T positions are cut into blocks of C = min(T, W); a block reads the R = C + W - 1 positions that any of
        its own can see, so work and memory grow with T * W and not with T * T.

        Returns:
            expert_mask [blocks, C, R*N]; per layer expert_key [blocks, R*N, dk] and expert_value [blocks, R*N, d].
        """
        block = min(len(records), self._window)
        inputs: dict[str, npt.NDArray[np.generic]] = {"expert_mask": self._prefill_mask(start, len(records), block)}
        for layer in self._layers:
            key = self._rotated(records[f"expert_key.{layer}"], start)
            value = records[f"expert_value.{layer}"].astype(np.float32)
            inputs[f"expert_key.{layer}"] = self._enter(self._keys[layer][sequence], key, start, block)
            inputs[f"expert_value.{layer}"] = self._enter(self._values[layer][sequence], value, start, block)
        return inputs

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in one position: overwrite the oldest slot and make it visible."""
        n = self._num_experts
        slot = slice(position % self._window * n, (position % self._window + 1) * n)
        for layer in self._layers:
            self._keys[layer][sequence, slot] = self._rotated(record[f"expert_key.{layer}"], position)[0]
            self._values[layer][sequence, slot] = record[f"expert_value.{layer}"][0]
        visible = min(position + 1, self._window) * n
        self._mask[sequence, 0, :visible] = 0.0
        self._mask[sequence, 0, visible:] = -np.inf

    def _rotated(self, key: npt.NDArray[np.generic], start: int) -> Floats:
        """Rotate stored keys [T, N, dk] of the positions from start on."""
        plain = key.astype(np.float32)
        if self._rotary is None:
            return plain
        cos, sin = (table[start : start + len(key), None] for table in self._rotary)
        out = np.empty_like(plain)
        rotate(plain, cos, sin, out)
        return out

    def _enter(self, ring: Floats, rows: Floats, start: int, block: int) -> Floats:
        """Put rows [T, N, size] into a ring [W*N, size]; give them with what came before, in overlapping blocks."""
        slots = ring.reshape(self._window, self._num_experts, -1)
        before = np.arange(start - self._window + 1, start)
        line = np.concatenate([slots[before % self._window], rows])
        newest = np.arange(max(start, start + len(rows) - self._window), start + len(rows))
        slots[newest % self._window] = rows[newest - start]
        reach = block + self._window - 1
        views = np.lib.stride_tricks.sliding_window_view(line, reach, axis=0)[::block]  # [blocks, N, size, R]
        return np.ascontiguousarray(np.moveaxis(views, -1, 1)).reshape(len(views), -1, line.shape[-1])

    def _prefill_mask(self, start: int, length: int, block: int) -> Floats:
        """0 where t - W < j <= t and j >= 0 for position t and slot j, -inf elsewhere; [blocks, C, R*N]."""
        first = start + np.arange(0, length, block)[:, None, None]
        t = first + np.arange(block)[None, :, None]
        j = first + np.arange(block + self._window - 1)[None, None, :] - (self._window - 1)
        visible = (j >= 0) & (j <= t) & (j > t - self._window)
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        return np.repeat(mask, self._num_experts, axis=-1)
