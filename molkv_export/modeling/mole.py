"""How a MoLE layer mixes the experts of the present token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig
from molkv_export.modeling.experts import ExpertRows


class MoleMixer(nn.Module):
    """sum_n s_n v[i,n] with s = softmax_n(n . r_n) (MoLE 2503.15798, section 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)  # rows are the r_n

    def scores(self, x: Tensor, rows: ExpertRows, inverse: Tensor) -> Tensor:  # noqa: ARG002
        """Give n . r_n, [B, T, N]; arguments as in `forward`."""
        scores: Tensor = self.router(x)
        return scores

    def forward(self, x: Tensor, rows: ExpertRows, inverse: Tensor) -> Tensor:
        """Mix.

        Args:
            x: The normed residual stream [B, T, d].
            rows: Experts of the U distinct token ids at hand.
            inverse: Which of those ids stands at each position, [B, T].
        """
        scores = torch.softmax(self.scores(x, rows, inverse).float(), dim=-1).to(x.dtype)
        return torch.einsum("btn,btnd->btd", scores, rows.value[inverse])
