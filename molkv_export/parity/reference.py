"""The source model in PyTorch, as it was trained, or rounded as a bundle stores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molkv_bundle import Bundle, Floats, record_dtype
from molkv_export.checkpoints import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.modeling import LookupExpertForCausalLM, Records
from molkv_export.modeling.experts import ExpertNetworks, ExpertRows
from molkv_export.parity.rounding import StoredRows, rounding_slack
from molkv_export.parity.stored_activations import round_activations
from molkv_export.parity.stored_weights import stored_weight
from molkv_runtime import Store

_CACHE_BYTES = 256 * 1024 * 1024


class SourceModel(LookupExpertForCausalLM):
    """A checkpoint's reference model. Dense weights are in RAM, everything that is about token ids stays in the file.

    Records are read (lookup form) or computed by networks that are loaded one layer at a time (training form); those
    that were needed last are kept.
    """

    def __init__(self, checkpoint: Checkpoint, bundle: Bundle | None = None) -> None:
        """Load the dense weights of a checkpoint, which must stay open as long as the model is used.

        Args:
            checkpoint: The checkpoint.
            bundle: How weights and activations are rounded, and which context and window there are; None is as trained.
        """
        graph = None if bundle is None else bundle.graph()
        # The shapes of a static graph show its context and window; what else a manifest says of them is not believed.
        config = graph.restrict(checkpoint.config) if graph is not None and graph.is_static else checkpoint.config
        with torch.device("meta"):
            super().__init__(config, checkpoint.form)
        self._checkpoint = checkpoint
        self._store: Store | None = None
        self._kept_ids, self._kept = torch.empty(0, dtype=torch.long), _no_records(checkpoint)
        names = [name for name in checkpoint.parameters if ".experts." not in name and name != EMBEDDING]
        sources = {name: name for name in names}
        if self.config.tie_word_embeddings:
            sources[LM_HEAD] = EMBEDDING
        state = {}
        for name, source in sources.items():  # one by one: only one is in RAM twice
            weight = checkpoint.tensor(source)
            state[name] = weight if graph is None else stored_weight(name, weight, graph)
        self.load_state_dict(state, strict=False, assign=True)
        self.requires_grad_(False).eval()
        if bundle is not None and bundle.graph().dense_dtype == "qdq-int8":
            round_activations(self, bundle)

    def records(self, ids: Tensor) -> Records:
        """Give the records of distinct token ids [U], rounded if `logits` was asked for it."""
        exact = self._cached(ids)
        return exact if self._store is None else self._rounded(exact, self._store, ids)

    def stored_rows(self, store: Store, ids: npt.NDArray[np.int64]) -> StoredRows:
        """Read what a store holds of token ids, to be compared with exact records."""
        slack = rounding_slack(self.config, self._checkpoint.form)
        return StoredRows(store.gather(ids), store.value_dtype, slack)

    def _rounded(self, exact: Records, store: Store, ids: Tensor) -> Records:
        """Round records as a store does: take what it holds, where that is the source's record rounded.

        Where it is not, the source's record is taken, its floating-point numbers rounded to the nearest: a wrong one
        cannot be hidden.
        """
        stored = self.stored_rows(store, ids.numpy())
        experts = {}
        for index, (layer, rows) in enumerate(exact.experts.items()):
            key = None if rows.key is None else _where(rows.key, *stored.key(index, rows.key), stored.plain)
            experts[layer] = ExpertRows(key, _where(rows.value, *stored.value(index, rows.value), stored.plain_value))
        return Records(_where(exact.embedding, *stored.embedding(exact.embedding), stored.plain), experts)

    def _cached(self, ids: Tensor) -> Records:
        missing = ids[~torch.isin(ids, self._kept_ids)]
        if len(missing):
            if (len(self._kept_ids) + len(missing)) * record_dtype(self.config, "float32").itemsize > _CACHE_BYTES:
                self._kept_ids, self._kept, missing = ids[:0], _no_records(self._checkpoint), ids
            self._kept = _map(lambda kept, new: torch.cat([kept, new]), self._kept, self.exact_records(missing))
            self._kept_ids = torch.cat([self._kept_ids, missing])
        order = self._kept_ids.argsort()
        places = order[torch.searchsorted(self._kept_ids[order], ids)]
        return _map(lambda kept: kept[places], self._kept)

    @torch.no_grad()
    def exact_records(self, ids: Tensor) -> Records:
        """Read or compute the records of token ids [U], not rounded."""
        embedding = self._rows(EMBEDDING, ids)
        read = self._table_rows if self._checkpoint.form == "lookup" else self._network_rows
        return Records(embedding, {layer: read(layer, ids, embedding) for layer in self.config.layers_with_experts})

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        runs = np.split(ids.numpy(), np.flatnonzero(np.diff(ids.numpy()) != 1) + 1)  # neighbours in one read
        return torch.cat([self._checkpoint.tensor(name, int(run[0]), int(run[-1]) + 1) for run in runs])

    def _table_rows(self, layer: int, ids: Tensor, _embedding: Tensor) -> ExpertRows:
        prefix = f"model.layers.{layer}.experts."
        key = self._rows(f"{prefix}keys", ids) if self.config.has_keys else None
        return ExpertRows(key, self._rows(f"{prefix}values", ids))

    def _network_rows(self, layer: int, ids: Tensor, embedding: Tensor) -> ExpertRows:
        prefix = f"model.layers.{layer}.experts."
        names = [name for name in self._checkpoint.parameters if name.startswith(prefix)]
        with torch.device("meta"):
            networks = ExpertNetworks(self.config)
        state = {name.removeprefix(prefix): self._checkpoint.tensor(name) for name in names}
        networks.load_state_dict(state, assign=True)
        rows: ExpertRows = networks(ids, embedding)
        return rows

    def logits(self, ids: npt.NDArray[np.int64], store: Store | None = None, last: int = 0) -> Floats:
        """Compute logits of token ids [T] in one pass, with no cache and no state.

        Args:
            ids: The sequence.
            store: What records are rounded to; None is the model as it was trained.
            last: For how many final positions; 0 is all.

        Returns:
            float32 [last or T, vocab_size].
        """
        return next(self.logits_in_pieces(ids, store, last, len(ids)))

    @torch.no_grad()
    def logits_in_pieces(
        self, ids: npt.NDArray[np.int64], store: Store | None, last: int, rows: int
    ) -> Iterator[Floats]:
        """Compute the same as `logits`, but give so many rows at a time: with a large vocabulary all are a lot."""
        self._store = store
        hidden = self.hidden(torch.from_numpy(ids)[None])[0, -last:]
        self._store = None
        for start in range(0, len(hidden), rows):
            yield self.lm_head(hidden[start : start + rows]).numpy()


def _no_records(checkpoint: Checkpoint) -> Records:
    config = checkpoint.config
    key = torch.empty(0, config.num_experts, config.expert_key_size) if config.has_keys else None
    rows = ExpertRows(key, torch.empty(0, config.num_experts, config.hidden_size))
    return Records(torch.empty(0, config.hidden_size), dict.fromkeys(config.layers_with_experts, rows))


def _map(function: Callable[..., Tensor], *records: Records) -> Records:
    """Combine records tensor by tensor."""
    experts = {}
    for layer, first in records[0].experts.items():
        rows = [each.experts[layer] for each in records]
        key = None if first.key is None else function(*(each.key for each in rows))
        experts[layer] = ExpertRows(key, function(*(each.value for each in rows)))
    return Records(function(*(each.embedding for each in records)), experts)


def _where(exact: Tensor, found: Tensor, agrees: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(agrees.reshape(-1, *[1] * (exact.dim() - 1)), found, exact.to(dtype).float())
