"""The experts of the tokens at hand, as the dense graph wants them: present ones (MoLE) or a window (MoLKV)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from molkv_bundle import Arrays, ModelConfig, Records
from molkv_runtime.window import ExpertWindow, InputFormat, Part


class ExpertState(Protocol):
    """What the host keeps of the experts of B sequences, and feeds to the graph."""

    block_length: int
    """Prefill chunks are at most this long, or a multiple of it."""

    decode_inputs: Arrays
    """Buffers that the graph reads in a decode step, by input name; they never move."""

    def prefill(self, part: Part, groups: Iterable[Records]) -> Arrays:
        """Take in a part of a prompt, whose records (float32) come in groups.

        Gives the graph's inputs for them, in memory that the next call uses again.
        """

    def finish(self, sequence: int, end: int) -> None:
        """Keep what later steps need of a prompt whose last part, up to position `end`, was taken in last.

        Until then nothing has changed for the sequence.
        """

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in the record [1] (float32) of a sequence's next position, into `decode_inputs`."""


class PresentExperts:
    """MoLE (and dense models, which have none): a position reads the experts of its own token."""

    block_length = 1

    def __init__(self, config: ModelConfig, batch_size: int, inputs: InputFormat) -> None:
        self._dtype = inputs.dtype
        self._names = [f"expert_value.{layer}" for layer in config.layers_with_experts]
        self._shape = (config.num_experts, config.hidden_size)
        self._values = np.zeros((len(self._names), batch_size, 1, *self._shape), self._dtype)
        self.decode_inputs: Arrays = dict(zip(self._names, self._values, strict=True))
        self._memory = np.zeros((len(self._names), 0, *self._shape), self._dtype)  # of prefill

    def prefill(self, part: Part, groups: Iterable[Records]) -> Arrays:
        """Give the values of the records, [1, T, N, d] for each layer."""
        if self._memory.shape[1] < part.computed:
            self._memory = np.zeros((len(self._names), part.computed, *self._shape), self._dtype)
        done = 0
        for records in groups:
            if self._names:
                self._memory[:, done : done + len(records)] = records["layers"]["value"].swapaxes(0, 1)
            done += len(records)
        return {name: values[None, : part.computed] for name, values in zip(self._names, self._memory, strict=True)}

    def finish(self, sequence: int, end: int) -> None:
        """Nothing: a position reads its own experts only."""

    def decode(self, sequence: int, position: int, record: Records) -> None:  # noqa: ARG002
        """Put the values of the record where the graph reads them."""
        if self._names:
            self._values[:, sequence, 0] = record["layers"]["value"][0]


def expert_state(
    config: ModelConfig, batch_size: int, max_length: int, inputs: InputFormat | None = None
) -> ExpertState:
    """Make the state that a model needs, for B sequences of at most max_length tokens; by default as `cpu` wants it."""
    if config.has_keys:
        return ExpertWindow(config, batch_size, max_length, inputs or InputFormat())
    return PresentExperts(config, batch_size, inputs or InputFormat())
