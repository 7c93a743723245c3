"""The rows of a checkpoint's experts, computed (training form) or read (lookup form) in small pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from molkv_bundle import ModelConfig
from molkv_export.checkpoints import EMBEDDING, Checkpoint
from molkv_export.modeling.experts import ExpertNetworks

_TABLE_BYTES = 8 * 1024 * 1024  # of a table's piece, as float32
_READ_BYTES = 16 * 1024 * 1024  # of a tensor that holds the tables of several layers
_ACTIVATION_BYTES = 16 * 1024 * 1024  # of a network, for a piece
_MOST_IDS = 4096


class Piece(NamedTuple):
    """Rows of one layer for some ids: the keys or values of some of its experts."""

    layer: int
    first_id: int
    name: str  # "key" or "value"
    experts: slice
    rows: Tensor  # [ids, experts, dk or d], of any floating-point dtype


class RowSource(Protocol):
    """Where records come from."""

    config: ModelConfig
    ids_at_once: int
    """Pieces hold the rows of so many ids. It must depend on the checkpoint alone, since the last bits of a matrix
    product can depend on its size, and an export must give the same bytes whatever memory it was given."""
    working_bytes: int
    """RAM that making pieces takes, beyond the records'."""
    loads_networks: bool
    """Whether each call of `pieces` has to load something first, so that few calls are better than many."""

    def embedding(self, start: int, stop: int) -> Tensor:
        """Give the input embeddings [ids, d] of token ids start to stop."""

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Give all rows for token ids start to stop; every expert's network is loaded once."""


def row_source(checkpoint: Checkpoint) -> RowSource:
    """Give the rows of a checkpoint."""
    return NetworkRows(checkpoint) if checkpoint.form == "training" else TableRows(checkpoint)


class TableRows:
    """Lookup form: rows stand in the checkpoint."""

    loads_networks = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        tables = {"key": "keys", "value": "values"} if self.config.has_keys else {"value": "values"}
        self._tables = {
            (layer, name): f"model.layers.{layer}.experts.{table}"
            for layer, (name, table) in product(self.config.layers_with_experts, tables.items())
        }
        row = self.config.hidden_size * max(1, self.config.num_experts)
        widest = max(map(checkpoint.row_bytes, self._tables.values()), default=1)
        self.ids_at_once = max(1, min(_MOST_IDS, _TABLE_BYTES // (4 * row), _READ_BYTES // widest))
        # As read, as float32, and what quantizing makes of them.
        # What is read of several layers at once is still in use when the next is read.
        self.working_bytes = 2 * self.ids_at_once * widest + 4 * _TABLE_BYTES

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Read rows, of some ids in all layers before other ids: a tensor may hold all layers, row by row."""
        for first in range(start, stop, self.ids_at_once):
            last = min(stop, first + self.ids_at_once)
            found = self._checkpoint.stored_together(list(self._tables.values()), first, last)
            for (layer, name), rows in zip(self._tables, found, strict=True):
                yield Piece(layer, first, name, slice(None), rows)


class NetworkRows:
    """Training form: rows are what the expert networks give for the embeddings; one network is in RAM at a time."""

    loads_networks = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = self.config = checkpoint.config
        self._checkpoint = checkpoint
        activations = 4 * config.expert_intermediate_size + 4 * config.hidden_size
        self.ids_at_once = max(1, min(_MOST_IDS, _ACTIVATION_BYTES // (4 * activations)))
        network = 3 * config.hidden_size * config.expert_intermediate_size
        keys = config.num_experts * config.expert_key_size * config.hidden_size
        self.working_bytes = 2 * 4 * max(network, keys) + 2 * _ACTIVATION_BYTES  # as read and as float32

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Compute rows, layer by layer and expert by expert."""
        for layer in self.config.layers_with_experts:
            yield from self._layer(layer, start, stop)

    def _layer(self, layer: int, start: int, stop: int) -> Iterator[Piece]:
        if self.config.has_keys:
            experts = self._load(layer, "norm.", "key_")
            for first, x in self._embeddings(start, stop):
                key = experts.key(experts.norm(x))
                assert key is not None
                yield Piece(layer, first, "key", slice(None), key)
        for index in range(self.config.num_experts):
            experts = self._load(layer, "norm.", f"networks.{index}.")
            for first, x in self._embeddings(start, stop):
                value = experts.networks[index](experts.norm(x))
                yield Piece(layer, first, "value", slice(index, index + 1), value[:, None])

    def _embeddings(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for first in range(start, stop, self.ids_at_once):
            yield first, self.embedding(first, min(stop, first + self.ids_at_once))

    def _load(self, layer: int, *parts: str) -> ExpertNetworks:
        """Give a layer's networks of which only some parts are there."""
        prefix = f"model.layers.{layer}.experts."
        with torch.device("meta"):
            experts = ExpertNetworks(self.config).requires_grad_(False)
        names = [name for name in self._checkpoint.parameters if name.startswith(prefix)]
        state = {
            name.removeprefix(prefix): self._checkpoint.tensor(name).requires_grad_(False)
            for name in names
            if name.removeprefix(prefix).startswith(parts)
        }
        experts.load_state_dict(state, strict=False, assign=True)
        return experts.requires_grad_(False)
