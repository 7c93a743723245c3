"""The expert window: the experts of the last W tokens of each sequence, in a ring buffer for each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import Arrays, Floats, MolkvConfig, Records, WindowDtype, rotary_tables
from molkv_runtime.experts import ExpertState, InputFormat, Part, PresentExperts

_Rows = npt.NDArray[Any]  # [L, ..., N, size]: rows of all L layers, for N experts of some positions
_SCALE = "expert_value_scale"
_SMALLEST = np.float32(np.finfo(np.float32).tiny)


class ExpertWindow:
    """The key-value experts of B sequences. Position p is in slot p % W. The order of slots does not affect the graph.

    A key is rotated by its position once, when it enters the window. In an int8 window, each value is a row of int8
    codes with a scale. The codes and scales of an int8 store are copied; values of other stores are rounded when they
    enter the window.
    """

    def __init__(self, config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat) -> None:
        self._layers = config.layers_with_experts
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
        self._rotary: tuple[Floats, Floats] | None = None
        if config.expert_rope:
            self._rotary = rotary_tables(np.arange(max_length), config.expert_key_size, config.rope_theta)
        self.decode_inputs: Arrays = {"expert_mask": self._mask, **self._by_name(self._rings)}
        self.trim()

    def trim(self) -> None:
        """Free the memory for the blocks of prefill."""
        # Memory for the blocks, [L, numbers of a layer].
        self._memory = {name: np.zeros((len(self._layers), 0), ring.dtype) for name, ring in self._rings.items()}
        # The last W positions of the last part, [L, W, N, size].
        self._latest = {name: ring[:, 0] for name, ring in self._rings.items()}
        self._prefill_mask: tuple[tuple[int, int], Floats] = ((-1, -1), self._mask)
        # The current part, and its blocks of C positions as arrays [L, blocks, R, N, size].
        self._part, self._block = Part(0, 0, 0, follows=False, keep=0), 1
        self._blocks = self._rings

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

    def begin(self, part: Part) -> None:
        """Allocate memory for a part of a prompt, and copy the experts of the W - 1 positions before it.

        The part is divided into blocks of C = min(length, W) positions. A block reads the experts of the
        R = C + W - 1 positions that its positions see. So work and memory grow with length * W, not with length
        squared. A padded part is one block.

        Args:
            part: The part. If it is not padded, its length is at most W, or a multiple of W.
        """
        block = part.rows or min(part.length, self._window)
        reach, count = block + self.lookback, (part.rows or part.length) // block
        blocks = {name: self._room(name, count, reach) for name in self._rings}
        for name, rows in blocks.items():
            if part.follows:
                rows[:, 0, : self.lookback] = self._latest[name][:, 1:]
            else:
                for slots, chosen in self._runs(part.start - self.lookback, self.lookback):
                    rows[:, 0, chosen] = self._rings[name][:, part.sequence, slots]
        last = part.length - (count - 1) * block  # number of positions in the last block
        self._latest = {name: rows[:, -1, last - 1 : last + self.lookback] for name, rows in blocks.items()}
        self._part, self._block, self._blocks = part, block, blocks

    def add(self, first: int, records: Records) -> None:
        """Add decoded records. They belong to the part's positions from index `first` on."""
        for number, chosen, rows in _in_blocks(first, len(records), self._block):
            there = slice(self.lookback + rows.start, self.lookback + rows.stop)
            places = {name: blocks[:, number, there] for name, blocks in self._blocks.items()}
            self._put(self._part.start + first + chosen.start, records[chosen], places)
            for blocks in self._blocks.values():
                if number + 1 < blocks.shape[1]:  # the next block sees all positions of this block except the first
                    seen = slice(max(rows.start, 1), rows.stop)
                    shared = blocks[:, number, self.lookback + seen.start : self.lookback + seen.stop]
                    blocks[:, number + 1, seen.start - 1 : seen.stop - 1] = shared

    def inputs(self) -> Arrays:
        """Return expert_mask [blocks, C, R*N] and the inputs of each layer.

        These are expert_key [blocks, R*N, dk], expert_value [blocks, R*N, d] and, in an int8 window, expert_value_scale
        [blocks, 1, R*N].
        """
        mask = self._mask_of_blocks(self._part.start, self._part.rows or self._part.length, self._block)
        return {"expert_mask": mask, **self._by_name(self._blocks)}

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
        self._rotated(layers["key"], start, places["expert_key"])
        scales = places.get(_SCALE)
        if scales is None:
            places["expert_value"][...] = layers["value"]
        elif layers["value"].dtype == np.int8:
            places["expert_value"][...], scales[...] = layers["value"], layers["scale"]
        else:
            _round(layers["value"], places["expert_value"], scales)

    def restore(self, sequence: int, start: int, records: Records) -> None:
        """Write the decoded records [n] of the positions from `start` on into their slots; n is at most W - 1."""
        for slots, chosen in self._runs(start, len(records)):
            places = {name: ring[:, sequence, slots] for name, ring in self._rings.items()}
            self._put(start + chosen.start, records[chosen], places)

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Write the decoded record [1] of one position into the oldest slot, and make the slot visible."""
        slot = position % self._window
        self._put(position, record, {name: ring[:, sequence, slot : slot + 1] for name, ring in self._rings.items()})
        visible = min(position + 1, self._window) * self._num_experts
        self._mask[sequence, 0, :visible] = 0.0
        self._mask[sequence, 0, visible:] = self._inputs.hidden

    def _rotated(self, stored: Floats, start: int, out: Floats) -> None:
        """Rotate stored keys [L, T, N, dk] by their positions, which begin at `start`. Write the result to `out`."""
        if self._rotary is None:
            np.copyto(out, stored)
            return
        cos, sin = (table[start : start + stored.shape[1], None] for table in self._rotary)
        _rotate(stored, cos, sin, out)

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


def _in_blocks(first: int, count: int, block: int) -> Iterator[tuple[int, slice, slice]]:
    """Split items `first` to `first + count - 1` at the ends of blocks.

    Yields:
        The number of a block, the slice of the items that are in it, and their slice in the block.
    """
    at = first
    while at < first + count:
        number, offset = divmod(at, block)
        length = min(block - offset, first + count - at)
        yield number, slice(at - first, at - first + length), slice(offset, offset + length)
        at += length


def molkv_state(config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat) -> ExpertState:
    """Return a new expert state of a MoLKV model. If no layer has experts, the state keeps nothing."""
    state = ExpertWindow if config.layers_with_experts else PresentExperts
    return state(config, batch_size, max_length, inputs)


def molkv_state_bytes(config: MolkvConfig, length: int, dtype: WindowDtype) -> int:
    """Return the bytes of the expert window of one sequence of `length` tokens. The window's values have this dtype."""
    value = 4 * config.hidden_size if dtype == "float32" else config.hidden_size + 4
    row = 4 * config.expert_key_size + value
    return min(config.expert_window, length) * config.num_experts * row * len(config.layers_with_experts)


def _round(values: Floats, codes: _Rows, scales: _Rows) -> None:
    """Round rows [..., d] to int8 codes [..., d] with a scale [..., 1] for each row (`docs/bundle-format.md`)."""
    largest = np.maximum(values.max(axis=-1, keepdims=True), -values.min(axis=-1, keepdims=True))
    scale = largest / np.float32(127)
    with np.errstate(invalid="ignore"):  # the result for a record with NaN or infinity does not matter
        scale *= scale >= _SMALLEST
        scales[...] = scale
        np.rint(values / (scale + (scale == 0)), out=codes, casting="unsafe")


def _rotate(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """Rotate x [..., size] into `out` of the same shape. cos and sin broadcast to [..., size / 2].

    Number i of the first half and number i of the second half form a pair.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
