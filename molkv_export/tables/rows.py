"""The rows of a checkpoint's experts (their vectors for each token id), in small pieces.

The rows are computed by networks (training form) or read from tables (lookup form).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig
from molkv_export.checkpoints import EMBEDDING, Checkpoint
from molkv_export.modeling.experts import ExpertPart, Networks

_TABLE_BYTES = 8 * 1024 * 1024  # largest size of a piece of a table in float32, in bytes
_READ_BYTES = 16 * 1024 * 1024  # largest size of a piece of a tensor with the tables of several layers
_ACTIVATION_BYTES = 16 * 1024 * 1024  # largest size of a network's activations for a piece, in bytes
_MOST_IDS = 4096  # largest number of token ids in a piece


class SomeRows(NamedTuple):
    """One vector of one layer for consecutive token ids, for all experts or some of them."""

    layer: int
    ids: range
    vector: str  # the vector's name in records
    experts: slice  # the range of these experts in the vector's first dimension
    rows: Callable[[], Tensor]
    """A function that computes [ids, *shape of the vector for these experts], in any floating-point dtype.

    It may run in any thread, and beside the functions of other pieces.
    """


class RowSource(Protocol):
    """The interface of a source of the embeddings and rows that records hold."""

    config: ModelConfig
    ids_at_once: int
    """Number of token ids in a piece. It must not depend on the memory limit: the last bits of a matrix product can
    depend on the size of the product, but the bytes of a store must depend only on the checkpoint."""
    working_bytes: int
    """RAM in bytes that is needed to make pieces, without the RAM for records."""
    piece_bytes: int
    """RAM in bytes that each piece needs in addition while it is computed."""
    loads_networks: bool
    """Whether each call of `pieces` loads networks, which compute rows. If so, few calls for many ids are faster than
    many calls, and several pieces at a time are faster than one."""

    def embedding(self, start: int, stop: int) -> Tensor:
        """Return the input embeddings [ids, d] of token ids start to stop."""

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Yield all rows of token ids start to stop; every network is loaded once.

        When the caller asks for a piece, it should use no more pieces than a network has. Then at most two networks are
        in RAM.
        """


def row_source(checkpoint: Checkpoint) -> RowSource:
    """Return the source of a checkpoint's rows."""
    return NetworkRows(checkpoint) if checkpoint.form == "training" else TableRows(checkpoint)


class TableRows:
    """The `RowSource` of lookup form: rows are read from the checkpoint's tables."""

    loads_networks = False
    piece_bytes = 0

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
        # A piece needs RAM for the bytes that are read, and 4 * _TABLE_BYTES for the float32 copy and the results of
        # quantization. The bytes count twice, since a piece that holds several layers is in use during the next read.
        self.working_bytes = 2 * self.ids_at_once * widest + 4 * _TABLE_BYTES

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Yield all layers for some ids, then for the next ids, since one row of a tensor may hold all layers."""
        for first in range(start, stop, self.ids_at_once):
            last = min(stop, first + self.ids_at_once)
            found = self._checkpoint.stored_together(list(self._tables.values()), first, last)
            for (layer, name), rows in zip(self._tables, found, strict=True):
                yield SomeRows(layer, range(first, last), name, slice(None), partial(_same, rows))


def _same(rows: Tensor) -> Tensor:
    return rows


class NetworkRows:
    """The `RowSource` of training form: expert networks compute rows from embeddings."""

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
        self.working_bytes = 3 * 4 * largest  # two networks in float32, and the weights of one as they are read
        self.piece_bytes = 2 * _ACTIVATION_BYTES

    def embedding(self, start: int, stop: int) -> Tensor:
        """Read embeddings."""
        return self._checkpoint.tensor(EMBEDDING, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Yield pieces layer by layer and expert by expert."""
        for layer in self.config.layers_with_experts:
            for part in cast(Networks, self._model.experts(layer)).parts():
                loaded = self._load(layer, part.parameters)
                for first in range(start, stop, self.ids_at_once):
                    ids = range(first, min(stop, first + self.ids_at_once))
                    yield SomeRows(layer, ids, part.vector, part.experts, partial(self._rows, part, loaded, ids))

    def _rows(self, part: ExpertPart, loaded: nn.Module, ids: range) -> Tensor:
        return part.rows(loaded, self.embedding(ids.start, ids.stop))

    def _load(self, layer: int, beginnings: tuple[str, ...]) -> nn.Module:
        """Return a copy of a layer's networks; only parameters whose names begin with `beginnings` have values."""
        prefix = f"model.layers.{layer}.experts."
        networks = copy.deepcopy(self._model.experts(layer))
        names = [name.removeprefix(prefix) for name in self._checkpoint.parameters if name.startswith(prefix)]
        state = {name: self._checkpoint.tensor(prefix + name) for name in names if name.startswith(beginnings)}
        networks.load_state_dict(state, strict=False, assign=True)
        return networks.requires_grad_(False)


def _numbers(networks: nn.Module, part: ExpertPart) -> int:
    """Return the total number of values in the parameters that a part needs."""
    return sum(parameter.numel() for name, parameter in networks.named_parameters() if name.startswith(part.parameters))
