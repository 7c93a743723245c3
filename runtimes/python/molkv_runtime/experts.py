"""What the host keeps of experts between steps and how their records become inputs of the graph."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from molkv_bundle import Arrays, Floats, ModelConfig, Records, WindowDtype


class InputFormat(NamedTuple):
    """What a graph's inputs about experts are made of."""

    dtype: npt.DTypeLike = np.float32  # of floating-point ones
    hidden: float = -np.inf  # added to the scores of experts that are not seen
    window_dtype: WindowDtype = "float32"  # of the values of an expert window


class Part(NamedTuple):
    """A part of a prompt, taken in by one call of the graph."""

    sequence: int
    start: int  # its first position
    length: int
    follows: bool  # the part that was taken in last is the one before this one, of the same prompt
    keep: int  # of so many last positions the logits are wanted
    rows: int = 0  # positions that a static graph computes, those beyond length as padding; 0: length
    writes: bool = True  # whether its keys and values go into the cache; if not, they are there already


class ExpertState(Protocol):
    """What the host keeps of the experts of B sequences, and feeds to the graph."""

    block_length: int
    """Prefill chunks are at most this long, or a multiple of it."""

    decode_inputs: Arrays
    """Buffers that the graph reads in a decode step, by input name; they never move."""

    def begin(self, part: Part) -> None:
        """Make room for a part of a prompt; for a padded one, more positions than it has records."""

    def add(self, first: int, records: Records) -> None:
        """Enter records of the part, as `RecordDecoder` gives them: its positions from number `first` on, in order."""

    def inputs(self) -> Arrays:
        """Return the graph's inputs for the part, in memory that the next part uses again."""

    def finish(self, sequence: int, end: int) -> None:
        """Keep what later steps need of a prompt whose last part, up to position `end`, was taken in last.

        Until then nothing has changed for the sequence.
        """

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in the record [1] (as `RecordDecoder` gives it) of a sequence's next position, into `decode_inputs`."""


class PresentExperts:
    """Experts of a position's own token: nothing is kept between steps."""

    block_length = 1

    def __init__(self, config: ModelConfig, batch_size: int, max_length: int, inputs: InputFormat) -> None:  # noqa: ARG002
        self._dtype, self._batch_size = inputs.dtype, batch_size
        self._layers = config.layers_with_experts
        self._shapes = {vector.name: vector.shape for vector in config.record_vectors()} if self._layers else {}
        self._present = {name: self._zeros(name, batch_size) for name in self._shapes}
        self.decode_inputs = self._by_name({name: rows[:, :, None] for name, rows in self._present.items()})
        self._chunk = {name: self._zeros(name, 0) for name in self._shapes}  # memory of prefill
        self._length = 0  # positions of the part

    def _zeros(self, name: str, count: int) -> Floats:
        return np.zeros((len(self._layers), count, *self._shapes[name]), self._dtype)

    def _by_name(self, vectors: dict[str, Floats]) -> Arrays:
        """Return vectors [L, ...], by their name in records, layer by layer under the names of the graph's inputs."""
        return {
            f"expert_{name}.{layer}": rows[index]
            for name, rows in vectors.items()
            for index, layer in enumerate(self._layers)
        }

    def begin(self, part: Part) -> None:
        """Make room; what padding reads means nothing."""
        self._length = part.rows or part.length
        for name, rows in self._chunk.items():
            if rows.shape[1] < self._length:
                self._chunk[name] = self._zeros(name, self._length)

    def add(self, first: int, records: Records) -> None:
        """Copy the vectors of records."""
        for name, rows in self._chunk.items():
            rows[:, first : first + len(records)] = records["layers"][name].swapaxes(0, 1)

    def inputs(self) -> Arrays:
        """Return the vectors, [1, T, ...] for each layer."""
        return self._by_name({name: rows[:, None, : self._length] for name, rows in self._chunk.items()})

    def finish(self, sequence: int, end: int) -> None:
        """Nothing: a position reads its own experts only."""

    def decode(self, sequence: int, position: int, record: Records) -> None:  # noqa: ARG002
        """Put the vectors of the record where the graph reads them."""
        for name, rows in self._present.items():
            rows[:, sequence] = record["layers"][name][0]
