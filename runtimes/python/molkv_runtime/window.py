"""The expert window: the experts of the last W tokens of every sequence, in a ring per layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from molkv_runtime.config import ModelConfig
from molkv_runtime.dense_graph import Arrays
from molkv_runtime.record import Records
from molkv_runtime.rope import Floats, rotary_tables, rotate
from molkv_runtime.row_formats import RowDtype, ValueDecoder


class ExpertWindow:
    """Key-value experts of B sequences. Position p stands in slot p % W; the graph does not know the order.

    Keys are rotated by their position once, when they enter.
    """

    def __init__(self, config: ModelConfig, dtype: RowDtype, batch_size: int, max_length: int) -> None:
        self._layers = config.layers_with_experts
        self._num_experts = config.num_experts
        self._decoder = ValueDecoder(dtype)
        self._window = min(config.expert_window, max_length)  # a shorter sequence never fills the ring
        self.block_length = self._window
        slots = (len(self._layers), batch_size, self._window, config.num_experts)
        # Zeros, not garbage: masked slots have weight 0, and 0 * NaN would still be NaN.
        self._keys = np.zeros((*slots, config.expert_key_size), np.float32)
        self._values = np.zeros((*slots, config.hidden_size), np.float32)
        self._mask = np.full((batch_size, 1, self._window * config.num_experts), -np.inf, np.float32)
        self._rotary: tuple[Floats, Floats] | None = None
        if config.expert_rope:
            self._rotary = rotary_tables(np.arange(max_length), config.expert_key_size, config.rope_theta)
        self.decode_inputs: Arrays = {"expert_mask": self._mask, **self._by_name(self._keys, self._values)}

    def _by_name(self, keys: Floats, values: Floats) -> Arrays:
        """Cut arrays [L, blocks, R, N, size] into the graph's inputs [blocks, R*N, size]."""
        return {
            f"{name}.{layer}": array[index].reshape(array.shape[1], -1, array.shape[-1])
            for name, array in (("expert_key", keys), ("expert_value", values))
            for index, layer in enumerate(self._layers)
        }

    def prefill(self, sequence: int, start: int, records: Records) -> Arrays:
        """Take in T positions and give the graph's inputs for them.

        The T positions are cut into blocks of C = min(T, W); a block reads the R = C + W - 1 positions that any of
        its own can see, so work and memory grow with T * W and not with T * T.

        Returns:
            expert_mask [blocks, C, R*N]; per layer expert_key [blocks, R*N, dk] and expert_value [blocks, R*N, d].
        """
        block = min(len(records), self._window)
        layers = records["layers"].swapaxes(0, 1)  # [L, T]
        keys = self._line(self._keys[:, sequence], start, len(records))
        self._rotated(layers["key"], start, keys[:, self._window - 1 :])
        values = self._line(self._values[:, sequence], start, len(records))
        for layer, line in zip(layers, values[:, self._window - 1 :], strict=True):  # one by one: scratch stays small
            self._decoder.decode(layer, line)
        self._enter(self._keys[:, sequence], keys, start)
        self._enter(self._values[:, sequence], values, start)
        mask = self._prefill_mask(start, len(records), block)
        return {"expert_mask": mask, **self._by_name(self._blocks(keys, block), self._blocks(values, block))}

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in one position: overwrite the oldest slot and make it visible."""
        slot = position % self._window
        layers = record["layers"].swapaxes(0, 1)
        self._rotated(layers["key"], position, self._keys[:, sequence, slot : slot + 1])
        self._decoder.decode(layers, self._values[:, sequence, slot : slot + 1])
        visible = min(position + 1, self._window) * self._num_experts
        self._mask[sequence, 0, :visible] = 0.0
        self._mask[sequence, 0, visible:] = -np.inf

    def _rotated(self, stored: npt.NDArray[np.generic], start: int, out: Floats) -> None:
        """Rotate stored keys [L, T, N, dk] of the positions from start on."""
        if self._rotary is None:
            np.copyto(out, stored)
            return
        cos, sin = (table[start : start + stored.shape[1], None] for table in self._rotary)
        rotate(stored.astype(np.float32), cos, sin, out)

    def _line(self, ring: Floats, start: int, count: int) -> Floats:
        """Make room for `count` positions behind the W - 1 before them, which a ring [L, W, N, size] holds."""
        line = np.empty((len(ring), self._window - 1 + count, *ring.shape[2:]), np.float32)
        before = np.arange(start - self._window + 1, start)
        line[:, : self._window - 1] = ring[:, before % self._window]
        return line

    def _enter(self, ring: Floats, line: Floats, start: int) -> None:
        """Put the last W positions of a line that ends with the positions from `start` on into a ring."""
        end = start + line.shape[1] - (self._window - 1)
        newest = np.arange(max(start, end - self._window), end)
        ring[:, newest % self._window] = line[:, newest - end]

    def _blocks(self, line: Floats, block: int) -> Floats:
        """Cut a line [L, W - 1 + T, N, size] into overlapping blocks [L, blocks, R, N, size]."""
        reach = block + self._window - 1
        views = np.lib.stride_tricks.sliding_window_view(line, reach, axis=1)[:, ::block]  # [L, blocks, N, size, R]
        return np.ascontiguousarray(np.moveaxis(views, -1, 2))

    def _prefill_mask(self, start: int, length: int, block: int) -> Floats:
        """0 where t - W < j <= t and j >= 0 for position t and slot j, -inf elsewhere; [blocks, C, R*N]."""
        first = start + np.arange(0, length, block)[:, None, None]
        t = first + np.arange(block)[None, :, None]
        j = first + np.arange(block + self._window - 1)[None, None, :] - (self._window - 1)
        visible = (j >= 0) & (j <= t) & (j > t - self._window)
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        return np.repeat(mask, self._num_experts, axis=-1)
