"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate x [..., T, ..., size] by its positions (arXiv 2104.09864, eq. 34; halves paired as in Llama).

    Angles are computed in float64: in float32, position 1,000 would already be off by 1e-4 radians, differently in
    each runtime.

    Args:
        x: Vectors of an even size, any float dtype.
        positions: Integer positions, broadcastable to x's shape without the last dimension.
        theta: Base of the geometric series of wavelengths (`rope_theta`).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = positions[..., None].double() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
