"""The expert state of sequences: the experts that the host keeps between steps, and passes to the graph as inputs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from molkv_bundle import Arrays, Floats, ModelConfig, Records, WindowDtype
from molkv_runtime.record_decoder import RecordDecoder


class InputFormat(NamedTuple):
    """The format of a graph's expert inputs."""

    dtype: npt.DTypeLike = np.float32  # dtype of floating-point inputs
    hidden: float = -np.inf  # added to the scores of experts that a position must not see
    window_dtype: WindowDtype = "float32"  # dtype of the values in an expert window


class Part(NamedTuple):
    """A part of a prompt that one call of the graph computes."""

    sequence: int
    start: int  # its first position
    length: int
    follows: bool  # whether the previous call computed the positions just before this part
    keep: int  # number of last positions whose logits are kept
    rows: int = 0  # number of positions that a static graph computes, including padding; 0: same as `length`
    writes: bool = True  # whether to write keys and values to the KV cache; false: it already has them


class ExpertState(Protocol):
    """The experts of B sequences that the host keeps between steps, and the graph inputs made of them.

    A prompt is processed part by part: `take_in` for each part, and `finish` after the last part, which changes the
    state of the sequence. In a decode step, call `decode` for each sequence. Records are as the store has them.
    """

    block_length: int
    """The length of a part must be at most the block length, or a multiple of the block length."""

    lookback: int
    """The number of positions before a position whose experts this position reads."""

    decode_inputs: Arrays
    """The buffers that the graph reads in a decode step, by input name. Their addresses never change."""

    def take_in(self, part: Part, records: Records) -> Arrays:
        """Return the graph's expert inputs for a part of a prompt, in memory that the next part reuses.

        Args:
            part: The part. A padded part has more positions than records; the contents of the padding do not matter.
            records: The records of the part's positions [length].
        """

    def finish(self, sequence: int, end: int) -> None:
        """Store the experts that later steps need. Call this after the last part of a prompt.

        The prompt ends before position `end`. The state of the sequence does not change before this call.
        """

    def restore(self, sequence: int, start: int, records: Records) -> None:
        """Store the experts of earlier positions again, after a sequence was shortened or copied.

        Args:
            sequence: Index of the sequence.
            start: The first of these positions.
            records: The records [n] of the positions; n is at most `lookback`.
        """

    def trim(self) -> None:
        """Free the memory that only prompts need."""

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Write the record [1] of a sequence's next position to `decode_inputs`."""


class PresentExperts:
    """The expert state of models whose positions read the experts of their own token only. It keeps no experts."""

    block_length = 1
    lookback = 0

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,  # noqa: ARG002
        inputs: InputFormat,
        decoder: RecordDecoder,
    ) -> None:
        self._dtype, self._decoder = inputs.dtype, decoder
        self._layers = config.layers_with_experts
        self._shapes = {vector.name: vector.shape for vector in config.record_vectors()} if self._layers else {}
        self._present = {name: self._zeros(name, batch_size) for name in self._shapes}
        self.decode_inputs = self._by_name({name: rows[:, :, None] for name, rows in self._present.items()})
        self._chunk = {name: self._zeros(name, 0) for name in self._shapes}  # memory for prefill

    def _zeros(self, name: str, count: int) -> Floats:
        return np.zeros((len(self._layers), count, *self._shapes[name]), self._dtype)

    def _by_name(self, vectors: dict[str, Floats]) -> Arrays:
        """Split vectors [L, ...], keyed by their name in records, into one array per layer, keyed by input name."""
        return {
            f"expert_{name}.{layer}": rows[index]
            for name, rows in vectors.items()
            for index, layer in enumerate(self._layers)
        }

    def take_in(self, part: Part, records: Records) -> Arrays:
        """Return the vectors of a part, [1, T, ...] for each layer."""
        length = part.rows or part.length
        for name, rows in self._chunk.items():
            if rows.shape[1] < length:
                self._chunk[name] = self._zeros(name, length)
            for index, layer in enumerate(self._chunk[name]):
                self._decoder.read(records["layers"][:, index], name, layer[: part.length])
        return self._by_name({name: rows[:, None, :length] for name, rows in self._chunk.items()})

    def finish(self, sequence: int, end: int) -> None:
        """Do nothing: later positions do not read these experts."""

    def restore(self, sequence: int, start: int, records: Records) -> None:
        """Do nothing: `lookback` is 0."""

    def trim(self) -> None:
        """Free the memory for prefill."""
        self._chunk = {name: self._zeros(name, 0) for name in self._shapes}

    def decode(self, sequence: int, position: int, record: Records) -> None:  # noqa: ARG002
        """Write the vectors of the record to `decode_inputs`."""
        for name, rows in self._present.items():
            self._decoder.read(record["layers"][0], name, rows[:, sequence])
