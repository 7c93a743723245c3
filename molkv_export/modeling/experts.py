"""Experts in training form: networks that compute a token's rows from its input embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.modeling.layers import FeedForward, RMSNorm
from molkv_export.modeling.reference import Rows


class ExpertPart(NamedTuple):
    """A part of a layer's rows that can be computed while the layer's other networks are not in RAM."""

    vector: str  # its name in records
    experts: slice  # range of this part in the vector's first dimension
    parameters: tuple[str, ...]  # prefixes of the names of the parameters that this part needs
    rows: Callable[[Any, Tensor], Tensor]  # computes this part from the layer's networks and embeddings [U, d]


class Networks(Protocol):
    """The interface of one layer's expert networks, as the exporter uses it."""

    activation_size: int
    """Count of numbers in RAM, for each token id, while a part is computed."""

    def parts(self) -> Iterator[ExpertPart]:
        """Yield parts that together make up the rows of the layer."""


class ExpertNetworks(nn.Module):
    """Expert networks v[i,n] = FFN_n(RMSNorm_l(e_i)) of the input embedding e_i (MoLE 2503.15798, section 3)."""

    def __init__(self, config: LookupExpertConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.activation_size = 4 * config.expert_intermediate_size + 4 * config.hidden_size
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.networks = nn.ModuleList(
            FeedForward(config.hidden_size, config.expert_intermediate_size, config.hidden_act)
            for _ in range(config.num_experts)
        )

    def forward(self, ids: Tensor, embedding: Tensor) -> Rows:  # noqa: ARG002
        """Compute the rows of the token ids [U] whose embeddings are [U, d]."""
        x = self.norm(embedding)
        return {"value": torch.stack([network(x) for network in self.networks], dim=-2)}

    def parts(self) -> Iterator[ExpertPart]:
        """Yield parts that together make up the rows of a layer."""
        for index in range(self.num_experts):

            def rows(networks: ExpertNetworks, embedding: Tensor, index: int = index) -> Tensor:
                value: Tensor = networks.networks[index](networks.norm(embedding))
                return value[:, None]

            yield ExpertPart("value", slice(index, index + 1), ("norm.", f"networks.{index}."), rows)
