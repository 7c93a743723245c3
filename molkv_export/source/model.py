"""The source model in PyTorch, either as trained or with the rounding of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from molkv_bundle import Bundle, Floats, record_dtype
from molkv_export.checkpoints import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.modeling import ExactRecords, ReferenceModel, Rows
from molkv_export.source.arithmetic import Float64
from molkv_export.source.blocks import block_scales, checked_scales
from molkv_export.source.rounding import StoredRows, round_activations, rounding_slack, stored_weight
from molkv_export.source.streamed import stream, streamed_weights
from molkv_runtime import Store

Ids = npt.NDArray[np.int64]  # token ids

_CACHE_BYTES = 256 * 1024 * 1024


class SourceModel:
    """A checkpoint's reference model. It keeps no embeddings and experts in RAM, and no large sets of dense weights.

    Records are read (lookup form), or computed by networks that are loaded one layer at a time (training form). Recent
    records are cached.
    """

    def __init__(self, checkpoint: Checkpoint, bundle: Bundle | None = None) -> None:
        """Load the dense weights of a checkpoint.

        Args:
            checkpoint: The checkpoint. It must stay open as long as the model is used.
            bundle: A bundle of the checkpoint. The model rounds weights, activations and the expert window to the
                formats of this bundle, and uses the bundle's context length and window. None: the model stays as
                trained.
        """
        graph = None if bundle is None else bundle.graph()
        # A manifest is untrusted. Its context and window are used only for static graphs, whose shapes confirm both.
        self.config = graph.restrict(checkpoint.config) if graph is not None and graph.is_static else checkpoint.config
        with torch.device("meta"):
            self.model: ReferenceModel = checkpoint.make_model(self.config, checkpoint.form)
        self._checkpoint, self._slack = checkpoint, rounding_slack(_longest_sum(checkpoint))
        self._kept_ids = torch.empty(0, dtype=torch.long)
        self._kept: ExactRecords | None = None  # the records of `_kept_ids`
        names = [name for name in checkpoint.parameters if ".experts." not in name and name != EMBEDDING]
        self._sources = {name: name for name in names}
        if self.config.tie_word_embeddings:
            self._sources[LM_HEAD] = EMBEDDING
        shapes = self.dense_shapes
        self._graph = graph
        self._scales: dict[str, Tensor] = {}
        self._unchecked: dict[str, Tensor] = {}
        if bundle is not None and bundle.graph().dense_dtype == "int4":
            self._unchecked = block_scales(bundle, shapes)
        streamed = streamed_weights(shapes)
        # One by one, so that only one weight is in RAM twice.
        state = {name: self._read(name) for name in shapes if name not in streamed}
        self.model.load_state_dict(state, strict=False, assign=True)
        stream(self.model, streamed, self._read)
        self.is_streamed = bool(streamed)
        """Whether weights are loaded for each call."""
        self.model.requires_grad_(False).eval()
        if bundle is not None and bundle.graph().dense_dtype == "qdq-int8":
            round_activations(self.model, bundle)
        self._rounds_window = graph is not None and graph.window_dtype == "int8"
        if self._rounds_window:
            self.model.round_window()

    @property
    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the model's parameters that are in the dense graph, by name."""
        return {name: self._checkpoint.shape(source) for name, source in self._sources.items()}

    def dense_weight(self, name: str) -> Tensor:
        """Return a parameter of the dense graph, rounded as in the bundle."""
        parameter = self.model.get_parameter(name)
        return self._read(name) if parameter.is_meta else parameter.data

    def _read(self, name: str) -> Tensor:
        weight = self.exact_weight(name)
        if self._graph is None:
            return weight
        if name in self._unchecked:
            self._scales[name] = checked_scales(weight, self._graph.block_size, self._unchecked.pop(name))
        return stored_weight(name, weight, self._graph, self.model.plain_parameters, self._scales.get(name))

    def exact_weight(self, name: str) -> Tensor:
        """Read a parameter of the dense graph as it was trained."""
        return self._checkpoint.tensor(self._sources[name])

    def stored_rows(self, store: Store, ids: npt.NDArray[np.int64]) -> StoredRows:
        """Read the records of token ids from a store, for a comparison with exact records."""
        return StoredRows(store.gather(ids), self.config, store.value_dtype, self._slack)

    def _rounded(self, exact: ExactRecords, store: Store, ids: Tensor) -> ExactRecords:
        """Return the records, rounded as in a store.

        If a row of the store is a correct rounding of the source's row, the store's row is returned. Otherwise the
        source's row is returned, rounded to the nearest floating-point numbers, so that a wrong row in the store cannot
        hide an error.
        """
        stored = self.stored_rows(store, ids.numpy())
        layers = {}
        for index, (layer, rows) in enumerate(exact.layers.items()):
            layers[layer] = {
                name: _where(row, *stored.vector(index, name, row), stored.dtype(name)) for name, row in rows.items()
            }
        return ExactRecords(_where(exact.embedding, *stored.embedding(exact.embedding), stored.plain), layers)

    def _cached(self, ids: Tensor) -> ExactRecords:
        missing = ids[~torch.isin(ids, self._kept_ids)]
        if (len(self._kept_ids) + len(missing)) * record_dtype(self.config, "float32").itemsize > _CACHE_BYTES:
            self._kept_ids, self._kept, missing = ids[:0], None, ids
        kept = self._kept
        if len(missing) or kept is None:
            new = self.exact_records(missing)
            kept = new if kept is None else _map(lambda old, added: torch.cat([old, added]), kept, new)
            self._kept, self._kept_ids = kept, torch.cat([self._kept_ids, missing])
        order = self._kept_ids.argsort()
        places = order[torch.searchsorted(self._kept_ids[order], ids)]
        return _map(lambda rows: rows[places], kept)

    @torch.no_grad()
    def exact_records(self, ids: Tensor) -> ExactRecords:
        """Read or compute the records of token ids [U] without rounding."""
        embedding = self._rows(EMBEDDING, ids)
        return ExactRecords(
            embedding, {layer: self._layer_rows(layer, ids, embedding) for layer in self.config.layers_with_experts}
        )

    def _layer_rows(self, layer: int, ids: Tensor, embedding: Tensor) -> Rows:
        """Return the rows of token ids in one layer. If the experts are tables, only these rows are read."""
        prefix = f"model.layers.{layer}.experts."
        names = [name for name in self._checkpoint.parameters if name.startswith(prefix)]
        if self._checkpoint.form == "lookup":
            parameters = {name: self._rows(name, ids) for name in names}
            ids = torch.arange(len(ids))
        else:
            parameters = {name: self._checkpoint.tensor(name) for name in names}
        experts = self.model.experts(layer)
        rows: Rows = functional_call(
            experts, {name.removeprefix(prefix): tensor for name, tensor in parameters.items()}, (ids, embedding)
        )
        return rows

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        runs = np.split(ids.numpy(), np.flatnonzero(np.diff(ids.numpy()) != 1) + 1)  # consecutive ids in one read
        return torch.cat([self._checkpoint.tensor(name, int(run[0]), int(run[-1]) + 1) for run in runs])

    def logits(self, ids: Ids, store: Store | None = None, last: int = 0) -> Floats:
        """Return the logits of token ids [T], computed in one pass without a KV cache.

        Args:
            ids: The token ids.
            store: Records are rounded as in this store; None: records stay as trained.
            last: Number of final positions whose logits are returned; 0 for all positions.

        Returns:
            float32 [last or T, vocab_size].
        """
        [hidden] = self.hidden([ids], store)
        return next(self.head(hidden[-last:], len(ids)))

    @torch.no_grad()
    def hidden(self, texts: Sequence[Ids], store: Store | None = None, *, in_float64: bool = False) -> list[Tensor]:
        """Return the inputs of the LM head [T, d] for texts, whose weights are loaded once for all of them.

        Args:
            texts: The token ids [T] of each text; short texts take as much time and RAM as the longest.
            store: As in `logits`.
            in_float64: Whether to compute in float64.
        """
        longest = max(map(len, texts))
        # Later positions have no effect on earlier ones, so the texts are padded at their ends.
        padded = torch.from_numpy(np.stack([np.pad(ids, (0, longest - len(ids))) for ids in texts]))
        input_ids, inverse = torch.unique(padded, return_inverse=True)
        records = self._cached(input_ids)
        if store is not None:
            records = self._rounded(records, store, input_ids)
        if self._rounds_window:
            records = self.model.in_window(records)  # always in float32, since the codes are part of the format
        with Float64() if in_float64 else nullcontext():
            hidden = self.model.hidden(records, inverse)
        return [rows[: len(ids)] for rows, ids in zip(hidden, texts, strict=True)]

    @torch.no_grad()
    def head(self, hidden: Tensor, rows: int, *, in_float64: bool = False) -> Iterator[Floats]:
        """Yield the logits, float32 [n, vocab_size], of results of `hidden`, [T, d], in pieces of `rows` positions."""
        for start in range(0, len(hidden), rows):
            # The context ends before each yield, so that the caller's code is not affected.
            with Float64() if in_float64 else nullcontext():
                logits = self.model.head(hidden[start : start + rows])
            yield logits.float().numpy()


def _longest_sum(checkpoint: Checkpoint) -> int:
    """Return the number of terms of the longest sum in the expert networks; 0 if rows are read, not computed.

    A product with a matrix [out, in] has sums of `in` terms.
    """
    if checkpoint.form == "lookup":
        return 0
    shapes = [checkpoint.shape(name) for name in checkpoint.parameters if ".experts." in name]
    return max((shape[1] for shape in shapes if len(shape) == 2), default=0)


def _map(function: Callable[..., Tensor], *records: ExactRecords) -> ExactRecords:
    """Apply a function to each tensor of some records, and return records of the results."""
    layers = {
        layer: {name: function(*(each.layers[layer][name] for each in records)) for name in rows}
        for layer, rows in records[0].layers.items()
    }
    return ExactRecords(function(*(each.embedding for each in records)), layers)


def _where(exact: Tensor, found: Tensor, agrees: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(agrees.reshape(-1, *[1] * (exact.dim() - 1)), found, exact.to(dtype).float())
