"""Causal self-attention with grouped key-value heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.modeling.rope import rotate


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions, without biases, as in Llama."""

    def __init__(self, config: LookupExpertConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every position of x [B, T, d] to itself and the positions before it."""
        batch, length, _ = x.shape
        positions = torch.arange(length, device=x.device)

        def heads(projected: Tensor) -> Tensor:  # [B, T, H*head_dim] -> [B, H, T, head_dim]
            return projected.view(batch, length, -1, self.head_dim).transpose(1, 2)

        query = rotate(heads(self.q_proj(x)), positions, self.rope_theta)
        key = rotate(heads(self.k_proj(x)), positions, self.rope_theta)
        out = nn.functional.scaled_dot_product_attention(
            query, key, heads(self.v_proj(x)), is_causal=True, enable_gqa=True
        )
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return projected
