"""Experts in training form: networks that compute a token's rows (its expert vectors) from its input embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.modeling.layers import FeedForward, RMSNorm
from molkv_export.modeling.reference import Rows


class ExpertPart(NamedTuple):
    """A part of a layer's rows, the vectors that the layer stores for each token id.

    Only the networks of this part must be in RAM while the part is computed.
    """

    vector: str  # the vector's name in records
    experts: slice  # this part's range in the vector's first dimension
    parameters: tuple[str, ...]  # prefixes of the names of the parameters that this part needs
    rows: Callable[[Any, Tensor], Tensor]  # computes this part from the layer's networks and embeddings [U, d]


class Networks(Protocol):
    """The methods and attributes of one layer's expert networks that the exporter uses."""

    activation_size: int
    """Number of values, for each token id, that are in RAM while a part is computed."""

    def parts(self) -> Iterator[ExpertPart]:
        """Yield parts that together make up the rows of the layer."""


class ExpertNetworks(nn.Module):
    """The expert networks of one layer: v[i,n] = FFN_n(RMSNorm(e_i)), where e_i is the input embedding of token id i.

    Source: MoLE, arXiv 2503.15798, section 3.
    """

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
        """Return the rows of token ids [U], computed from their embeddings [U, d]."""
        x = self.norm(embedding)
        return {"value": torch.stack([network(x) for network in self.networks], dim=-2)}

    def parts(self) -> Iterator[ExpertPart]:
        """Yield parts that together make up the rows of a layer."""
        for index in range(self.num_experts):

            def rows(networks: ExpertNetworks, embedding: Tensor, index: int = index) -> Tensor:
                value: Tensor = networks.networks[index](networks.norm(embedding))
                return value[:, None]

            yield ExpertPart("value", slice(index, index + 1), ("norm.", f"networks.{index}."), rows)
