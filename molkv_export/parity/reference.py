"""The source model in PyTorch, as it was trained, or with its records rounded as a bundle stores them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molkv_export.checkpoints import Checkpoint
from molkv_export.modeling import LookupExpertForCausalLM, Records
from molkv_export.modeling.experts import ExpertRows
from molkv_runtime.manifest import RowDtype
from molkv_runtime.rope import Floats

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class RoundedModel(LookupExpertForCausalLM):
    """The reference model whose records go through another dtype, as they do on their way into a store."""

    stored_as = torch.float32

    def records(self, ids: Tensor) -> Records:
        """Give the records of token ids [U], rounded."""
        exact = super().records(ids)
        experts = {
            layer: ExpertRows(None if rows.key is None else self._round(rows.key), self._round(rows.value))
            for layer, rows in exact.experts.items()
        }
        return Records(self._round(exact.embedding), experts)

    def _round(self, x: Tensor) -> Tensor:
        return x.to(self.stored_as).to(x.dtype)


class Reference:
    """A runner for the source model: one call of the whole sequence, no cache, no window, no state."""

    def __init__(self, checkpoint: Checkpoint, stored_as: RowDtype = "float32") -> None:
        """Load the model.

        Args:
            checkpoint: The bundle's source.
            stored_as: Dtype that the records are rounded to; float32 is the model as it was trained.
        """
        self._model = checkpoint.load_model()
        self._model.__class__ = RoundedModel
        self._model.stored_as = _DTYPES[stored_as]  # type: ignore[assignment]

    @torch.no_grad()
    def logits(self, ids: npt.NDArray[np.int64]) -> Floats:
        """Compute logits [T, vocab_size] of token ids [T]."""
        logits: Floats = self._model(torch.from_numpy(ids)[None])[0].numpy()
        return logits
