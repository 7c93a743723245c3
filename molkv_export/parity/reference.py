"""The source model in PyTorch, as it was trained, or with its records rounded as a bundle stores them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.native import EMBEDDING, LM_HEAD
from molkv_export.modeling import LookupExpertForCausalLM, Records
from molkv_export.modeling.experts import ExpertRows
from molkv_export.parity.rounding import StoredRows
from molkv_runtime.rope import Floats
from molkv_runtime.store import ExpertStore


class SourceModel(LookupExpertForCausalLM):
    """A checkpoint's reference model, whose tables (in lookup form) stay in the file and are read by rows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the dense weights of a checkpoint, which must stay open as long as the model is used."""
        with torch.device("meta"):
            super().__init__(checkpoint.config, checkpoint.form)
        self._checkpoint = checkpoint
        self._store: ExpertStore | None = None
        state = {name: checkpoint.tensor(name) for name in checkpoint.tensor_names if not _is_table(name)}
        if self.config.tie_word_embeddings:
            state[LM_HEAD] = state[EMBEDDING]
        self.load_state_dict(state, strict=False, assign=True)
        self.requires_grad_(False).eval()

    def records(self, ids: Tensor) -> Records:
        """Give the records of token ids [U], rounded if `logits` was asked for it."""
        exact = self._read(ids) if self._checkpoint.form == "lookup" else super().records(ids)
        return exact if self._store is None else _rounded(exact, self._store, ids)

    def _read(self, ids: Tensor) -> Records:
        def rows(name: str) -> Tensor:
            return torch.cat([self._checkpoint.tensor(name, i, i + 1) for i in ids.tolist()])

        experts = {}
        for layer in self.config.layers_with_experts:
            prefix = f"model.layers.{layer}.experts."
            experts[layer] = ExpertRows(
                rows(f"{prefix}keys") if self.config.has_keys else None, rows(f"{prefix}values")
            )
        return Records(self.model.embed_tokens(ids), experts)

    def logits(self, ids: npt.NDArray[np.int64], store: ExpertStore | None = None) -> Floats:
        """Compute logits [T, vocab_size] of token ids [T] in one pass, with no cache and no state.

        Args:
            ids: The sequence.
            store: What records are rounded to; None is the model as it was trained.
        """
        self._store = store
        logits: Floats = self(torch.from_numpy(ids)[None])[0].numpy()
        self._store = None
        return logits


def _rounded(exact: Records, store: ExpertStore, ids: Tensor) -> Records:
    """Round records as a store does: take what it holds, where that is the source's record rounded.

    Where it is not, the source's record stays as it is, so that a wrong one cannot be hidden.
    """
    stored = StoredRows(store.gather(ids.numpy()), store.value_dtype)
    experts = {}
    for index, (layer, rows) in enumerate(exact.experts.items()):
        key = None if rows.key is None else _where(rows.key, *stored.key(index, rows.key))
        experts[layer] = ExpertRows(key, _where(rows.value, *stored.value(index, rows.value)))
    return Records(_where(exact.embedding, *stored.embedding(exact.embedding)), experts)


def _where(exact: Tensor, found: Tensor, agrees: Tensor) -> Tensor:
    return torch.where(agrees.reshape(-1, *[1] * (exact.dim() - 1)), found, exact)


def _is_table(name: str) -> bool:
    return name.endswith((".experts.keys", ".experts.values"))
