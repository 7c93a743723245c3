"""The experts of one layer, which depend on the token id alone: as networks (training form) or tables (lookup form)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig
from molkv_export.modeling.feed_forward import FeedForward
from molkv_export.modeling.norm import RMSNorm

Form = Literal["training", "lookup"]


class ExpertRows(NamedTuple):
    """The experts of U token ids in one layer."""

    key: Tensor | None  # [U, N, dk], not rotated; None for MoLE
    value: Tensor  # [U, N, d]


class Records(NamedTuple):
    """Everything that is stored for U token ids."""

    embedding: Tensor  # [U, d]
    experts: dict[int, ExpertRows]  # by layer index


class ExpertNetworks(nn.Module):
    """Training form: rows are computed from the token's input embedding e_i.

    v[i,n] = FFN_n(RMSNorm_l(e_i))                (MoLE 2503.15798, section 3)
    k[i,n] = RMSNorm_k(K_n RMSNorm_l(e_i))        (our choice: MoLKV 2512.09723 asks for key-value pairs only)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.networks = nn.ModuleList(
            FeedForward(config.hidden_size, config.expert_intermediate_size, config.hidden_act)
            for _ in range(config.num_experts)
        )
        self.key_proj: nn.Linear | None = None  # the K_n, stacked: [N*dk, d]
        self.key_norm: RMSNorm | None = None
        if config.has_keys:
            self.key_proj = nn.Linear(config.hidden_size, config.num_experts * config.expert_key_size, bias=False)
            if config.expert_qk_norm:
                self.key_norm = RMSNorm(config.expert_key_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, embedding: Tensor) -> ExpertRows:  # noqa: ARG002
        """Compute the rows of the token ids [U] whose embeddings are [U, d]."""
        x = self.norm(embedding)
        value = torch.stack([network(x) for network in self.networks], dim=-2)
        return ExpertRows(self.key(x), value)

    def key(self, x: Tensor) -> Tensor | None:
        """Compute the keys [U, N, dk] of normed embeddings [U, d]; None for MoLE."""
        if self.key_proj is None:
            return None
        key: Tensor = self.key_proj(x).unflatten(-1, (self.num_experts, -1))
        return key if self.key_norm is None else self.key_norm(key)


class ExpertTables(nn.Module):
    """Lookup form: rows are read from tables that hold what `ExpertNetworks` gives for every id of the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.vocab_size, config.num_experts)
        self.keys = nn.Parameter(torch.zeros(*shape, config.expert_key_size)) if config.has_keys else None
        self.values = nn.Parameter(torch.zeros(*shape, config.hidden_size))

    def forward(self, ids: Tensor, embedding: Tensor) -> ExpertRows:  # noqa: ARG002
        """Look up the rows of the token ids [U]."""
        return ExpertRows(None if self.keys is None else self.keys[ids], self.values[ids])
