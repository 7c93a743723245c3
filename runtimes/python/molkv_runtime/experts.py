"""The experts of the tokens at hand, as the dense graph wants them: present ones (MoLE) or a window (MoLKV)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from molkv_runtime.config import ModelConfig
from molkv_runtime.dense_graph import Arrays
from molkv_runtime.record import Records
from molkv_runtime.row_formats import RowDtype, ValueDecoder
from molkv_runtime.window import ExpertWindow


class ExpertState(Protocol):
    """What the host keeps of the experts of B sequences, and feeds to the graph."""

    block_length: int
    """Prefill chunks are at most this long, or a multiple of it."""

    decode_inputs: Arrays
    """Buffers that the graph reads in a decode step, by input name; they never move."""

    def prefill(self, sequence: int, start: int, records: Records) -> Arrays:
        """Take in the records [T] of a sequence's positions from `start` on; give the graph's inputs for them."""

    def decode(self, sequence: int, position: int, record: Records) -> None:
        """Take in the record [1] of a sequence's next position, into `decode_inputs`."""


class PresentExperts:
    """MoLE (and dense models, which have none): a position reads the experts of its own token."""

    block_length = 1

    def __init__(self, config: ModelConfig, dtype: RowDtype, batch_size: int) -> None:
        self._decoder = ValueDecoder(dtype)
        self._names = [f"expert_value.{layer}" for layer in config.layers_with_experts]
        self._shape = (config.num_experts, config.hidden_size)
        self._values = np.zeros((len(self._names), batch_size, 1, *self._shape), np.float32)
        self.decode_inputs: Arrays = dict(zip(self._names, self._values, strict=True))

    def prefill(self, sequence: int, start: int, records: Records) -> Arrays:  # noqa: ARG002
        """Give the values of the records, [1, T, N, d] for each layer."""
        if not self._names:
            return {}
        values = np.empty((len(self._names), 1, len(records), *self._shape), np.float32)
        for layer, out in zip(records["layers"].swapaxes(0, 1), values[:, 0], strict=True):
            self._decoder.decode(layer, out)
        return dict(zip(self._names, values, strict=True))

    def decode(self, sequence: int, position: int, record: Records) -> None:  # noqa: ARG002
        """Put the values of the record where the graph reads them."""
        if self._names:
            self._decoder.decode(record["layers"][0], self._values[:, sequence, 0])


def expert_state(config: ModelConfig, dtype: RowDtype, batch_size: int, max_length: int) -> ExpertState:
    """Make the state that a model needs, for B sequences of at most max_length tokens and values of a dtype."""
    if config.has_keys:
        return ExpertWindow(config, dtype, batch_size, max_length)
    return PresentExperts(config, dtype, batch_size)
