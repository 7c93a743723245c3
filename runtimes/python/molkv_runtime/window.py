"""The expert window: the experts of the last W tokens of each sequence, in a ring buffer for each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import Arrays, Floats, MolkvConfig, Records, WindowDtype, rotary_tables
from molkv_runtime.experts import ExpertState, InputFormat, Part, PresentExperts
from molkv_runtime.record_decoder import RecordDecoder, Scratch

_Rows = npt.NDArray[Any]  # [L, ..., N, size]: rows of all L layers, for N experts of some positions
_SCALE = "expert_value_scale"
_SMALLEST = np.float32(np.finfo(np.float32).tiny)


class ExpertWindow:
    """The key-value experts of B sequences. Position p is in slot p % W. The order of slots does not affect the graph.

    A key is rotated by its position once, when it enters the window. In an int8 window, each value is a row of int8
    codes with a scale. The codes and scales of an int8 store are copied; values of other stores are rounded when they
    enter the window.
    """

    def __init__(
        self, config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat, decoder: RecordDecoder
    ) -> None:
        self._layers = config.layers_with_experts
        self._decoder = decoder
        self._num_experts = config.num_experts
        self._inputs = inputs
        self._window = min(config.expert_window, max_length)  # a sequence that is shorter than W never fills the ring
        self.block_length, self.lookback = self._window, self._window - 1
        slots = (len(self._layers), batch_size, self._window, config.num_experts)
        # Unused slots must not be NaN: the mask makes their weights 0, but 0 * NaN is NaN.
        dtype, hidden = inputs.dtype, inputs.hidden
        self._rings: dict[str, _Rows] = {"expert_key": np.zeros((*slots, config.expert_key_size), dtype)}
        if inputs.window_dtype == "int8":
            self._rings["expert_value"] = np.zeros((*slots, config.hidden_size), np.int8)
            self._rings[_SCALE] = np.zeros((*slots, 1), np.float32)
        else:
            self._rings["expert_value"] = np.zeros((*slots, config.hidden_size), dtype)
        self._mask = np.full((batch_size, 1, self._window * config.num_experts), hidden, dtype)
        self._rotary: tuple[Floats, Floats] | None = None  # factors [max_length, 1, 2, dk / 2] of both halves of a key
        if config.expert_rope:
            cos, sin = rotary_tables(np.arange(max_length), config.expert_key_size, config.rope_theta)
            self._rotary = np.stack([cos, cos], 1)[:, None], np.stack([-sin, sin], 1)[:, None]
        self._keys, self._turned, self._values = (Scratch(np.float32) for _ in range(3))
        self.decode_inputs: Arrays = {"expert_mask": self._mask, **self._by_name(self._rings)}
        self.trim()

    def trim(self) -> None:
        """Free the memory for the blocks of prefill."""
        # Memory for the blocks, [L, numbers of a layer].
        self._memory = {name: np.zeros((len(self._layers), 0), ring.dtype) for name, ring in self._rings.items()}
        # The last W positions of the last block, [L, W, N, size].
        self._latest = {name: ring[:, 0] for name, ring in self._rings.items()}
        self._prefill_mask: tuple[tuple[int, int], Floats] = ((-1, -1), self._mask)

    def _by_name(self, arrays: dict[str, _Rows]) -> Arrays:
        """Return the inputs of each layer, [blocks, R*N, size] (scales: [blocks, 1, R*N]), as views of the arrays."""
        shapes = {name: (array.shape[1], -1, array.shape[-1]) for name, array in arrays.items()}
        if _SCALE in shapes:
            shapes[_SCALE] = (arrays[_SCALE].shape[1], 1, -1)
        return {
            f"{name}.{layer}": array[index].reshape(shapes[name])
            for name, array in arrays.items()
            for index, layer in enumerate(self._layers)
        }

    def take_in(self, part: Part, records: Records) -> Arrays:
        """Return the graph's inputs for a part of a prompt.

        The part is divided into blocks of C = min(length, W) positions. A block reads the experts of the
        R = C + W - 1 positions that its positions see. So work and memory grow with length * W, not with length
        squared. A padded part is one block.

        Args:
            part: The part. If it is not padded, its length is at most W, or a multiple of W.
            records: The records of the part's positions [length].

        Returns:
            expert_mask [blocks, C, R*N] and the inputs of each layer: expert_key [blocks, R*N, dk], expert_value
            [blocks, R*N, d] and, in an int8 window, expert_value_scale [blocks, 1, R*N].
        """
        length = part.rows or part.length
        size = part.rows or min(part.length, self._window)
        blocks = {name: self._room(name, length // size, size + self.lookback) for name in self._rings}
        for first in range(0, part.length, size):
            block = {name: rows[:, first // size] for name, rows in blocks.items()}
            self._look_back(block, part, first)
            chosen = records[first : first + size]
            end = self.lookback + len(chosen)
            self._put(part.start + first, chosen, {name: rows[:, self.lookback : end] for name, rows in block.items()})
            self._latest = {name: rows[:, end - self._window : end] for name, rows in block.items()}
        return {"expert_mask": self._mask_of_blocks(part.start, length, size), **self._by_name(blocks)}

    def _look_back(self, block: dict[str, _Rows], part: Part, first: int) -> None:
        """Copy the experts of the W - 1 positions before a block, which begins at index `first` of the part."""
        for name, rows in block.items():
            if first or part.follows:
                # A copy of all layers at once could overlap for all that numpy knows, so it would make a copy first.
                for target, source in zip(rows, self._latest[name], strict=True):
                    target[: self.lookback] = source[1:]
            else:
                for slots, chosen in self._runs(part.start - self.lookback, self.lookback):
                    rows[:, chosen] = self._rings[name][:, part.sequence, slots]

    def finish(self, sequence: int, end: int) -> None:
        """Copy the experts of the last W positions of the prompt, which ends before `end`, into the ring buffer."""
        for name, ring in self._rings.items():
            self._enter(ring[:, sequence], self._latest[name], end)

    def _enter(self, ring: _Rows, rows: _Rows, end: int) -> None:
        """Copy the rows of the W positions before `end`, [L, W, N, size], into a ring buffer of the same shape."""
        for slots, chosen in self._runs(end - self._window, self._window):
            ring[:, slots] = rows[:, chosen]

    def _put(self, start: int, records: Records, places: dict[str, _Rows]) -> None:
        """Write the experts of records [n], for the positions from `start` on, to arrays [L, n, N, size]."""
        layers = records["layers"].swapaxes(0, 1)  # [L, n]
        self._put_keys(start, layers, places["expert_key"])
        values, scales = places["expert_value"], places.get(_SCALE)
        if scales is not None and layers["value"].dtype == np.int8:
            values[...], scales[...] = layers["value"], layers["scale"]
            return
        # The rows of one layer are contiguous and fit into the processor's cache. So do those of one position.
        for layer in range(len(layers)) if len(records) > 1 else [slice(None)]:
            if scales is None:
                self._decoder.read(layers[layer], "value", values[layer])
                continue
            numbers = self._values.array(values[layer].shape)
            self._decoder.read(layers[layer], "value", numbers)
            _round(numbers, values[layer], scales[layer])

    def _put_keys(self, start: int, layers: Records, out: Floats) -> None:
        """Write the keys of layers [L, n] to `out` [L, n, N, dk], rotated by their positions, which begin at `start`.

        Number i of the first half of a key and number i of its second half form a pair.
        """
        if self._rotary is None:
            self._decoder.read(layers, "key", out)
            return
        cos, sin = (table[start : start + layers.shape[1]] for table in self._rotary)
        keys = self._keys.array(out.shape)
        self._decoder.read(layers, "key", keys)
        halves = keys.reshape(*out.shape[:-1], 2, -1)
        turned = np.multiply(halves[..., ::-1, :], sin, out=self._turned.array(halves.shape))
        halves *= cos
        np.add(halves, turned, out=out.reshape(halves.shape))

    def restore(self, sequence: int, start: int, records: Records) -> None:
        """Write the records [n] of the positions from `start` on into their slots; n is at most W - 1."""
        for slots, chosen in self._runs(start, len(records)):
            places = {name: ring[:, sequence, slots] for name, ring in self._rings.items()}
            self._put(start + chosen.start, records[chosen], places)

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Write the record [1] of one position into the oldest slot, and make the slot visible."""
        slot = position % self._window
        self._put(position, record, {name: ring[:, sequence, slot : slot + 1] for name, ring in self._rings.items()})
        visible = min(position + 1, self._window) * self._num_experts
        self._mask[sequence, 0, :visible] = 0.0
        self._mask[sequence, 0, visible:] = self._inputs.hidden

    def _room(self, name: str, count: int, reach: int) -> _Rows:
        """Return memory [L, count, R, N, size] for rows of the ring `name`. The memory grows if needed."""
        ring = self._rings[name]
        rows, size = ring.shape[-2:]
        needed = count * reach * rows * size
        if self._memory[name].shape[1] < needed:
            self._memory[name] = np.zeros((len(ring), needed), ring.dtype)
        return self._memory[name][:, :needed].reshape(len(ring), count, reach, rows, size)

    def _runs(self, start: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Yield the slots of `count` <= W positions from `start` on.

        Yields:
            One or two pairs: a slice of consecutive slots, and the slice of the `count` positions that are in them.
        """
        first = start % self._window
        until_end = min(count, self._window - first)
        yield slice(first, first + until_end), slice(0, until_end)
        if until_end < count:
            yield slice(0, count - until_end), slice(until_end, count)

    def _mask_of_blocks(self, start: int, length: int, block: int) -> Floats:
        """Return the mask [blocks, C, R*N].

        An element is 0 if position t sees position j >= 0 (t - W < j <= t), else the input format's value `hidden`.
        """
        start = min(start, self._window)  # the mask is the same for all larger starts, so it can be reused
        if self._prefill_mask[0] != (start, length):
            first = start + np.arange(0, length, block)[:, None, None]
            t = first + np.arange(block)[None, :, None]
            j = first + np.arange(block + self._window - 1)[None, None, :] - (self._window - 1)
            visible = (j >= 0) & (j <= t) & (j > t - self._window)
            mask = np.where(visible, 0.0, self._inputs.hidden).astype(self._inputs.dtype)
            self._prefill_mask = (start, length), np.repeat(mask, self._num_experts, axis=-1)
        return self._prefill_mask[1]


def molkv_state(
    config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat, decoder: RecordDecoder
) -> ExpertState:
    """Return a new expert state of a MoLKV model. If no layer has experts, the state keeps nothing."""
    state = ExpertWindow if config.layers_with_experts else PresentExperts
    return state(config, batch_size, max_length, inputs, decoder)


def molkv_state_bytes(config: MolkvConfig, length: int, dtype: WindowDtype) -> int:
    """Return the bytes of the expert window of one sequence of `length` tokens. The window's values have this dtype."""
    value = 4 * config.hidden_size if dtype == "float32" else config.hidden_size + 4
    row = 4 * config.expert_key_size + value
    return min(config.expert_window, length) * config.num_experts * row * len(config.layers_with_experts)


def _round(values: Floats, codes: _Rows, scales: _Rows) -> None:
    """Round rows [..., d] to int8 codes [..., d] with a scale [..., 1] for each row (`docs/bundle-format.md`).

    The values are overwritten.
    """
    largest = np.maximum(values.max(axis=-1, keepdims=True), -values.min(axis=-1, keepdims=True))
    scale = largest / np.float32(127)
    with np.errstate(invalid="ignore"):  # the result for a record with NaN or infinity does not matter
        scale *= scale >= _SMALLEST
        scales[...] = scale
        values /= scale + (scale == 0)
        np.rint(values, out=codes, casting="unsafe")
