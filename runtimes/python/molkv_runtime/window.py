"""The expert window: the experts of the last W tokens of every sequence, in a ring per layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molkv_bundle import Arrays, Floats, MolkvConfig, Records, rotary_tables
from molkv_runtime.experts import ExpertState, InputFormat, Part, PresentExperts


class ExpertWindow:
    """Key-value experts of B sequences. Position p stands in slot p % W; the graph does not know the order.

    Keys are rotated by their position once, when they enter.
    """

    def __init__(self, config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat) -> None:
        self._layers = config.layers_with_experts
        self._num_experts = config.num_experts
        self._inputs = inputs
        self._window = min(config.expert_window, max_length)  # a shorter sequence never fills the ring
        self._before = self._window - 1  # positions before a part that its first one sees
        self.block_length = self._window
        slots = (len(self._layers), batch_size, self._window, config.num_experts)
        # Zeros, not garbage: masked slots have weight 0, and 0 * NaN would still be NaN.
        dtype, hidden = inputs.dtype, inputs.hidden
        self._keys = np.zeros((*slots, config.expert_key_size), dtype)
        self._values = np.zeros((*slots, config.hidden_size), dtype)
        self._mask = np.full((batch_size, 1, self._window * config.num_experts), hidden, dtype)
        self._rotary: tuple[Floats, Floats] | None = None
        if config.expert_rope:
            self._rotary = rotary_tables(np.arange(max_length), config.expert_key_size, config.rope_theta)
        self.decode_inputs: Arrays = {"expert_mask": self._mask, **self._by_name(self._keys, self._values)}
        empty = np.zeros((len(self._layers), 0), dtype)
        self._memory = {"key": empty, "value": empty}  # of prefill's blocks, [L, any]
        # Of the last part, its last W positions [L, W, N, size].
        self._latest: tuple[Floats, ...] = (self._keys[:, 0], self._values[:, 0])
        self._prefill_mask: tuple[tuple[int, int], Floats] = ((-1, -1), self._mask)
        # The part that is being taken in: its blocks of C positions, as keys and values [L, blocks, R, N, size].
        self._part, self._block = Part(0, 0, 0, follows=False, keep=0), 1
        self._blocks: tuple[Floats, Floats] = self._keys, self._values

    def _by_name(self, keys: Floats, values: Floats) -> Arrays:
        """Cut arrays [L, blocks, R, N, size] into the graph's inputs [blocks, R*N, size]."""
        return {
            f"{name}.{layer}": array[index].reshape(array.shape[1], -1, array.shape[-1])
            for name, array in (("expert_key", keys), ("expert_value", values))
            for index, layer in enumerate(self._layers)
        }

    def begin(self, part: Part) -> None:
        """Make room for a part of a prompt, and put before it the W - 1 positions that its first one sees.

        The positions are cut into blocks of C = min(count, W); a block reads the R = C + W - 1 positions that any of
        its own can see, so work and memory grow with count * W and not with its square. A padded part is one block.

        Args:
            part: Which positions; at most W, or a multiple of it, or padded.
        """
        block = part.rows or min(part.length, self._window)
        reach, count = block + self._before, (part.rows or part.length) // block
        blocks = self._room("key", self._keys, count, reach), self._room("value", self._values, count, reach)
        for ring, rows, latest in zip((self._keys, self._values), blocks, self._latest, strict=True):
            if part.follows:
                rows[:, 0, : self._before] = latest[:, 1:]
            else:
                for slots, chosen in self._runs(part.start - self._before, self._before):
                    rows[:, 0, chosen] = ring[:, part.sequence, slots]
        last = part.length - (count - 1) * block  # positions in the last block
        self._latest = tuple(rows[:, -1, last - 1 : last + self._before] for rows in blocks)
        self._part, self._block, self._blocks = part, block, blocks

    def add(self, first: int, records: Records) -> None:
        """Enter the experts of records of the part, those of its positions from number `first` on."""
        keys, values = self._blocks
        for number, chosen, rows in _in_blocks(first, len(records), self._block):
            self._put(
                self._part.start + first + chosen.start, records[chosen], keys[:, number], values[:, number], rows
            )
            if number + 1 < keys.shape[1]:  # the next block sees all but the first of them
                seen = slice(max(rows.start, 1), rows.stop)
                for blocks in self._blocks:
                    there = blocks[:, number, self._before + seen.start : self._before + seen.stop]
                    blocks[:, number + 1, seen.start - 1 : seen.stop - 1] = there

    def inputs(self) -> Arrays:
        """Return expert_mask [blocks, C, R*N]; per layer expert_key [blocks, R*N, dk] and expert_value [..., d]."""
        mask = self._mask_of_blocks(self._part.start, self._part.rows or self._part.length, self._block)
        return {"expert_mask": mask, **self._by_name(*self._blocks)}

    def finish(self, sequence: int, end: int) -> None:
        """Enter the last W positions before `end`, which the last part of a prompt reached, into the ring."""
        for ring, latest in zip((self._keys, self._values), self._latest, strict=True):
            self._enter(ring[:, sequence], latest, end)

    def _enter(self, ring: Floats, rows: Floats, end: int) -> None:
        """Put the W positions before `end`, [L, W, N, size], into a ring of the same shape."""
        for slots, chosen in self._runs(end - self._window, self._window):
            ring[:, slots] = rows[:, chosen]

    def _put(self, start: int, records: Records, keys: Floats, values: Floats, rows: slice) -> None:
        """Write the experts of records into their rows of a block [L, R, N, size]."""
        layers = records["layers"].swapaxes(0, 1)  # [L, n]
        there = slice(self._before + rows.start, self._before + rows.stop)
        values[:, there] = layers["value"]
        self._rotated(layers["key"], start, keys[:, there])

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in the record [1] of one position, in float32: overwrite the oldest slot and make it visible."""
        slot = position % self._window
        layers = record["layers"].swapaxes(0, 1)
        self._rotated(layers["key"], position, self._keys[:, sequence, slot : slot + 1])
        self._values[:, sequence, slot : slot + 1] = layers["value"]
        visible = min(position + 1, self._window) * self._num_experts
        self._mask[sequence, 0, :visible] = 0.0
        self._mask[sequence, 0, visible:] = self._inputs.hidden

    def _rotated(self, stored: Floats, start: int, out: Floats) -> None:
        """Rotate stored keys [L, T, N, dk] of the positions from start on."""
        if self._rotary is None:
            np.copyto(out, stored)
            return
        cos, sin = (table[start : start + stored.shape[1], None] for table in self._rotary)
        _rotate(stored, cos, sin, out)

    def _room(self, kind: str, ring: Floats, count: int, reach: int) -> Floats:
        """Return memory [L, count, R, N, size] for rows as in a ring; it grows with the longest chunk."""
        rows, size = ring.shape[-2:]
        needed = count * reach * rows * size
        if self._memory[kind].shape[1] < needed:
            self._memory[kind] = np.zeros((len(ring), needed), self._inputs.dtype)
        return self._memory[kind][:, :needed].reshape(len(ring), count, reach, rows, size)

    def _runs(self, start: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Yield the slots of `count` <= W positions from `start` on, in one or two runs, and which they are."""
        first = start % self._window
        until_end = min(count, self._window - first)
        yield slice(first, first + until_end), slice(0, until_end)
        if until_end < count:
            yield slice(0, count - until_end), slice(until_end, count)

    def _mask_of_blocks(self, start: int, length: int, block: int) -> Floats:
        """0 where t - W < j <= t and j >= 0 for position t and slot j, hidden elsewhere; [blocks, C, R*N]."""
        start = min(start, self._window)  # from there on, all of a window is behind it
        if self._prefill_mask[0] != (start, length):
            first = start + np.arange(0, length, block)[:, None, None]
            t = first + np.arange(block)[None, :, None]
            j = first + np.arange(block + self._window - 1)[None, None, :] - (self._window - 1)
            visible = (j >= 0) & (j <= t) & (j > t - self._window)
            mask = np.where(visible, 0.0, self._inputs.hidden).astype(self._inputs.dtype)
            self._prefill_mask = (start, length), np.repeat(mask, self._num_experts, axis=-1)
        return self._prefill_mask[1]


def _in_blocks(first: int, count: int, block: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut `count` items from number `first` on where blocks end; yield block, part of the items, place there."""
    at = first
    while at < first + count:
        number, offset = divmod(at, block)
        length = min(block - offset, first + count - at)
        yield number, slice(at - first, at - first + length), slice(offset, offset + length)
        at += length


def molkv_state(config: MolkvConfig, batch_size: int, max_length: int, inputs: InputFormat) -> ExpertState:
    """Make the state of a MoLKV model; without layers that have experts there is nothing to keep."""
    state = ExpertWindow if config.layers_with_experts else PresentExperts
    return state(config, batch_size, max_length, inputs)


def molkv_state_bytes(config: MolkvConfig, length: int) -> int:
    """Return the bytes of the expert window of one sequence of `length` tokens, in float32."""
    row = config.expert_key_size + config.hidden_size
    return 4 * min(config.expert_window, length) * config.num_experts * row * len(config.layers_with_experts)


def _rotate(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """Rotate x [..., size] into out of the same shape; cos and sin broadcast to [..., size / 2]; halves are paired."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
