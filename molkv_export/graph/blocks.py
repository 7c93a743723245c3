"""Rounding of a weight to integer codes in blocks, with a scale for each block that makes the squared error small.

docs/bundle-format.md, "Blocks of int4", has the rules that `validate` checks. This module follows them:

1. Every number has the code that is nearest for its block's scale.
2. The scale is the one with the least squared error for these codes. Or it is the scale by the largest magnitude, which
   is the fallback.
3. The squared error of a block is at most the error with the scale by the largest magnitude.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import Floats

_COLUMNS_AT_A_TIME = 512  # the arrays of a piece fit into a CPU's cache

# Candidates for a block's largest magnitude as a multiple of the step of 4-bit codes. A weight that is on a grid of 4
# bits already has a whole number. Random weights in blocks of 32 to 256 have numbers from 6.5 to 11. Below 7.5 no
# number is beyond the codes, so the sign of the scale makes no difference.
_CANDIDATES = (*range(1, 7), 6.5, 7.0, *(sign * tenth / 10 for tenth in range(75, 115, 5) for sign in (1, -1)))
_MOST_ROUNDS = 32  # almost all blocks need less than 10


def encode_blocks(weight: Floats, bits: int, block_size: int, threads: int = 1) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return the codes and the scales of a weight, rounded in blocks of its columns.

    The result depends on the weight only: numpy adds the numbers of a block in a fixed order.

    Args:
        weight: The weight, float32 [in, out].
        bits: 4 or 8.
        block_size: Number of weights that share a scale.
        threads: Number of threads. The result does not depend on it.

    Returns:
        Codes, uint8 [out, blocks, block_size * bits / 8], where 2^(bits - 1) stands for 0 and the first of two 4-bit
        codes is in the lower half of a byte; and scales, float32 [out, blocks].
    """
    rows, columns = weight.shape
    blocks = -(-rows // block_size)
    codes = np.empty((columns, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((columns, blocks), np.float32)

    def encode(start: int) -> None:
        part = slice(start, min(start + _COLUMNS_AT_A_TIME, columns))
        for block in range(blocks):
            numbers = weight[block * block_size : (block + 1) * block_size, part]
            numbers = np.pad(numbers, ((0, block_size - len(numbers)), (0, 0)))
            steps, scales[part, block] = _rounded(numbers, 2 ** (bits - 1))
            stored = (steps + 2 ** (bits - 1)).astype(np.uint8)
            codes[part, block] = (stored if bits == 8 else stored[::2] | stored[1::2] << 4).T

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(encode, range(0, columns, _COLUMNS_AT_A_TIME)):
            pass
    return codes, scales


def is_on_grid(weight: Floats, block_size: int) -> bool:
    """Return whether a weight [out, in] is already rounded to 4 bits: each block of a row has at most 16 numbers.

    Checkpoints of quantization-aware training hold such weights.
    """
    if weight.shape[1] % block_size:
        return False
    numbers = np.sort(weight.reshape(-1, block_size), axis=1)
    return bool(((numbers[:, 1:] != numbers[:, :-1]).sum(axis=1) < 2**4).all())


def _rounded(w: Floats, half: int) -> tuple[Floats, Floats]:
    """Return the codes [block_size, n], from -half to half - 1, and the scales [n] of blocks w [block_size, n]."""
    plain = _scale_by_largest(w, half)
    steps = _nearest(w, plain, half)
    found, scale = _settled(w, _searched(w, half), half)
    is_better = _squared_error(w, found, scale) < _squared_error(w, steps, plain)
    return np.where(is_better, found, steps), np.where(is_better, scale, plain)


def _scale_by_largest(w: Floats, half: int) -> Floats:
    """Return the scales with which the number with the largest magnitude in each block becomes -half."""
    low, high = w.min(axis=0), w.max(axis=0)
    return np.where(high > -low, high, low) / np.float32(-half)


def _nearest(w: Floats, scale: Floats, half: int) -> Floats:
    steps = np.divide(w, scale, out=np.zeros_like(w), where=scale != 0)
    return np.rint(steps, out=steps).clip(-half, half - 1, out=steps)


def _searched(w: Floats, half: int) -> Floats:
    """Return the codes of the candidate that has the smallest squared error with its best scale."""
    largest: Floats = np.abs(w).max(axis=0)
    w = np.divide(w, largest, out=np.zeros_like(w), where=largest != 0)  # from -1 to 1
    best, chosen = np.zeros((2, w.shape[1]), np.float32)
    for candidate in _CANDIDATES:
        multiple = np.float32(candidate * half / 8)
        codes = w * multiple
        np.rint(codes, out=codes).clip(-half, half - 1, out=codes)
        # With the scale <w, codes> / <codes, codes>, the squared error is <w, w> - gain.
        gain = np.square((w * codes).sum(axis=0)) / np.maximum(np.square(codes).sum(axis=0), 1)
        chosen = np.where(gain > best, multiple, chosen)
        best = np.maximum(best, gain)
    return np.rint(w * chosen).clip(-half, half - 1)


def _settled(w: Floats, codes: Floats, half: int) -> tuple[Floats, Floats]:
    """Repeat two steps, each of which makes the error smaller, until nothing changes: best scales, nearest codes.

    A block that still changes after `_MOST_ROUNDS` gets the scale NaN.
    """
    scale = np.full(w.shape[1], np.nan, np.float32)
    open_blocks = np.arange(w.shape[1])
    for _ in range(_MOST_ROUNDS):
        numbers, old = w.take(open_blocks, axis=1), codes.take(open_blocks, axis=1)
        best = _best_scale(numbers, old)
        new = _nearest(numbers, best, half)
        changes = (new != old).any(axis=0)
        scale[open_blocks[~changes]] = best[~changes]
        codes[:, open_blocks] = new
        open_blocks = open_blocks[changes]
        if not len(open_blocks):
            break
    return codes, scale


def _best_scale(w: Floats, codes: Floats) -> Floats:
    exact = codes.astype(np.float64)
    return ((w * exact).sum(axis=0) / np.maximum((exact * exact).sum(axis=0), 1)).astype(np.float32)


def _squared_error(w: Floats, codes: Floats, scale: Floats) -> npt.NDArray[Any]:
    """Return the squared error of each block, float64 [n]; NaN if the scale is NaN."""
    return np.square(codes.astype(np.float64) * scale - w).sum(axis=0)
