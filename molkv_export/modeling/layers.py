"""Building blocks of decoder layers: norms, feed-forward networks, rotary positions, attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from molkv_bundle import LookupExpertConfig, rotated_pairs


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension: x / sqrt(mean(x²) + eps) * weight (arXiv 1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., size]."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """A feed-forward network in one of two forms.

    `silu`: down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202).
    `gelu`: down(gelu(up(x))), as in the published MoLE models.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: Literal["silu", "gelu"]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False) if hidden_act == "silu" else None
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., d]."""
        up = self.up_proj(x)
        inner = nn.functional.gelu(up) if self.gate_proj is None else nn.functional.silu(self.gate_proj(x)) * up
        out: Tensor = self.down_proj(inner)
        return out


def rotate(x: Tensor, positions: Tensor, theta: float, partial_rotary_factor: float = 1.0) -> Tensor:
    """Rotate x [..., T, ..., size] by its positions (arXiv 2104.09864, eq. 34).

    As in Llama, each number of the first half is paired with the number at the same place in the second half. Angles
    are computed in float64. In float32, an angle would be wrong by 1e-4 radians at position 1,000, and by a different
    amount in every runtime.

    Args:
        x: Vectors of an even size, any float dtype.
        positions: Integer positions. Their shape can be broadcast to the shape of x without its last dimension.
        theta: Base of the geometric series of wavelengths (`rope_theta`).
        partial_rotary_factor: The part of the pairs that is rotated; these are the pairs with the highest frequencies.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    frequencies[rotated_pairs(x.shape[-1], partial_rotary_factor) :] = 0
    angles = positions[..., None].double() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245) with rotary positions, without biases, as in Llama."""

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
