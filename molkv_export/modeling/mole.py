"""The MoLE model: each layer mixes the experts of the current token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molkv_bundle import MoleConfig
from molkv_export.modeling.decoder import LookupExpertForCausalLM
from molkv_export.modeling.experts import ExpertNetworks
from molkv_export.modeling.reference import Form, Rows


class MoleMixer(nn.Module):
    """The weighted sum of a token's experts: sum_n s_n v[i,n], with s = softmax_n(x . r_n).

    x is the normed residual stream. Source: MoLE, arXiv 2503.15798, section 3.
    """

    def __init__(self, config: MoleConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)  # row n of the weight is r_n

    def scores(self, x: Tensor, rows: Rows, inverse: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores x . r_n, [B, T, N]; the arguments are those of `forward`."""
        scores: Tensor = self.router(x)
        return scores

    def forward(self, x: Tensor, rows: Rows, inverse: Tensor) -> Tensor:
        """Return the weighted sum of the experts of each position's token, [B, T, d].

        Args:
            x: The normed residual stream [B, T, d].
            rows: Experts of U distinct token ids.
            inverse: For each position, the index of its token id among these ids, [B, T].
        """
        scores = torch.softmax(self.scores(x, rows, inverse).float(), dim=-1).to(x.dtype)
        return torch.einsum("btn,btnd->btd", scores, rows["value"][inverse])


class MoleForCausalLM(LookupExpertForCausalLM):
    """A MoLE language model. If `num_experts` is 0, it is a dense model without experts."""

    plain_parameters = (".router.weight",)

    def __init__(self, config: MoleConfig, form: Form = "training") -> None:
        super().__init__(config, form, lambda: ExpertNetworks(config), lambda: MoleMixer(config))

    def score_size(self) -> tuple[int | str, int]:
        """Return (N, 0). The graph has the N scores in the order of this model, so parity sorts none of them."""
        return self.config.num_experts, 0
