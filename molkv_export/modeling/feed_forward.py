"""The feed-forward network: the dense one of every layer, and the training form of every expert."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class FeedForward(nn.Module):
    """`silu`: down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202). `gelu`: down(gelu(up(x))), as published MoLE."""

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
