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
from molkv_runtime.manifest import RowDtype
from molkv_runtime.rope import Floats

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_FEWEST_ROWS = 32


class SourceModel(LookupExpertForCausalLM):
    """A checkpoint's reference model, whose tables (in lookup form) stay in the file and are read by rows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the dense weights of a checkpoint, which must stay open as long as the model is used."""
        with torch.device("meta"):
            super().__init__(checkpoint.config, checkpoint.form)
        self._checkpoint = checkpoint
        self._stored_as = torch.float32
        state = {name: checkpoint.tensor(name) for name in checkpoint.tensor_names if not _is_table(name)}
        if self.config.tie_word_embeddings:
            state[LM_HEAD] = state[EMBEDDING]
        self.load_state_dict(state, strict=False, assign=True)
        self.requires_grad_(False).eval()

    def records(self, ids: Tensor) -> Records:
        """Give the records of token ids [U], rounded to the dtype that `logits` was asked for."""
        if self._checkpoint.form == "lookup":
            return self._rounded(self._read(ids))
        # PyTorch multiplies a few rows by another kernel, whose last bits differ from those that export computes; on
        # the way to float16 they can tip a value to its other neighbour.
        padded = torch.cat([ids, ids.new_zeros(max(0, _FEWEST_ROWS - len(ids)))])
        exact = super().records(padded)
        experts = {
            layer: ExpertRows(None if rows.key is None else rows.key[: len(ids)], rows.value[: len(ids)])
            for layer, rows in exact.experts.items()
        }
        return self._rounded(Records(exact.embedding[: len(ids)], experts))

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

    def _rounded(self, exact: Records) -> Records:
        def rounded(x: Tensor) -> Tensor:
            return x.to(self._stored_as).to(x.dtype)

        experts = {
            layer: ExpertRows(None if rows.key is None else rounded(rows.key), rounded(rows.value))
            for layer, rows in exact.experts.items()
        }
        return Records(rounded(exact.embedding), experts)

    def logits(self, ids: npt.NDArray[np.int64], stored_as: RowDtype = "float32") -> Floats:
        """Compute logits [T, vocab_size] of token ids [T] in one pass, with no cache and no state.

        Args:
            ids: The sequence.
            stored_as: Dtype that records are rounded to; float32 is the model as it was trained.
        """
        self._stored_as = _DTYPES[stored_as]
        logits: Floats = self(torch.from_numpy(ids)[None])[0].numpy()
        return logits


def _is_table(name: str) -> bool:
    return name.endswith((".experts.keys", ".experts.values"))
