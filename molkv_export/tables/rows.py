"""The rows of a checkpoint's experts, computed (training form) or read (lookup form) in small pieces."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig
from molkv_export.checkpoints import EMBEDDING, Checkpoint
from molkv_export.modeling.experts import ExpertPart, Networks

_TABLE_BYTES = 8 * 1024 * 1024  # of a table's piece, as float32
_READ_BYTES = 16 * 1024 * 1024  # of a tensor that holds the tables of several layers
_ACTIVATION_BYTES = 16 * 1024 * 1024  # of a network, for a piece
_MOST_IDS = 4096


class SomeRows(NamedTuple):
    """Rows of one layer for some ids: a vector, or the part of it that some of the layer's experts have."""

    layer: int
    first_id: int
    vector: str  # its name in records
    experts: slice  # of the vector's first dimension
    rows: Tensor  # [ids, *shape of the part], of any floating-point dtype


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
        """Return the input embeddings [ids, d] of token ids start to stop."""

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Return all rows for token ids start to stop; every network is loaded once."""


def row_source(checkpoint: Checkpoint) -> RowSource:
    """Return the rows of a checkpoint."""
    return NetworkRows(checkpoint) if checkpoint.form == "training" else TableRows(checkpoint)


class TableRows:
    """Lookup form: rows stand in the checkpoint."""

    loads_networks = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        layers, vectors = self.config.layers_with_experts, self.config.record_vectors()
        self._tables = {
            (layer, vector.name): f"model.layers.{layer}.experts.{vector.name}s"
            for layer, vector in product(layers, vectors)
        }
        row = max(self.config.hidden_size, *(math.prod(vector.shape) for vector in vectors))
        widest = max(map(checkpoint.row_bytes, self._tables.values()), default=1)
        self.ids_at_once = max(1, min(_MOST_IDS, _TABLE_BYTES // (4 * row), _READ_BYTES // widest))
        # As read, as float32, and what quantizing makes of them.
        # What is read of several layers at once is still in use when the next is read.
        self.working_bytes = 2 * self.ids_at_once * widest + 4 * _TABLE_BYTES

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Read rows, of some ids in all layers before other ids: a tensor may hold all layers, row by row."""
        for first in range(start, stop, self.ids_at_once):
            last = min(stop, first + self.ids_at_once)
            found = self._checkpoint.stored_together(list(self._tables.values()), first, last)
            for (layer, name), rows in zip(self._tables, found, strict=True):
                yield SomeRows(layer, first, name, slice(None), rows)


class NetworkRows:
    """Training form: rows are what the expert networks give for the embeddings; one network is in RAM at a time."""

    loads_networks = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        with torch.device("meta"):
            self._model = checkpoint.make_model(self.config, checkpoint.form).requires_grad_(False)
        modules = [self._model.experts(layer) for layer in self.config.layers_with_experts]
        activations = max((cast(Networks, module).activation_size for module in modules), default=1)
        self.ids_at_once = max(1, min(_MOST_IDS, _ACTIVATION_BYTES // (4 * activations)))
        largest = max(
            (_numbers(module, part) for module in modules[:1] for part in cast(Networks, module).parts()), default=0
        )
        self.working_bytes = 2 * 4 * largest + 2 * _ACTIVATION_BYTES  # as read and as float32

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Compute rows, layer by layer and expert by expert."""
        for layer in self.config.layers_with_experts:
            yield from self._layer(layer, start, stop)

    def _layer(self, layer: int, start: int, stop: int) -> Iterator[SomeRows]:
        for part in cast(Networks, self._model.experts(layer)).parts():
            loaded = self._load(layer, part.parameters)
            for first, embedding in self._embeddings(start, stop):
                yield SomeRows(layer, first, part.vector, part.experts, part.rows(loaded, embedding))

    def _embeddings(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for first in range(start, stop, self.ids_at_once):
            yield first, self.embedding(first, min(stop, first + self.ids_at_once))

    def _load(self, layer: int, beginnings: tuple[str, ...]) -> nn.Module:
        """Return a layer's networks of which only some parameters have values."""
        prefix = f"model.layers.{layer}.experts."
        networks = copy.deepcopy(self._model.experts(layer))
        names = [name.removeprefix(prefix) for name in self._checkpoint.parameters if name.startswith(prefix)]
        state = {name: self._checkpoint.tensor(prefix + name) for name in names if name.startswith(beginnings)}
        networks.load_state_dict(state, strict=False, assign=True)
        return networks.requires_grad_(False)


def _numbers(networks: nn.Module, part: ExpertPart) -> int:
    """Count the numbers of the parameters that a part needs."""
    return sum(parameter.numel() for name, parameter in networks.named_parameters() if name.startswith(part.parameters))
