"""Rotary position embedding on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from molkv_bundle.row_formats import Floats


def rotary_tables(positions: npt.ArrayLike, size: int, theta: float) -> tuple[Floats, Floats]:
    """Compute cos and sin, each float32 [*positions.shape, size / 2]; angles in float64, as in the reference model."""
    half = size // 2
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """Rotate x [..., size] into out of the same shape; cos and sin broadcast to [..., size / 2]; halves are paired."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
