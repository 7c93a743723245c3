"""Whether stored numbers are the source's, rounded to what the store can hold.

This is written from the formats' definitions, without the exporter's quantizer, so that it finds mistakes in it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from molkv_bundle import INT4_LEVELS, NF4_LEVELS, ROW_FORMATS, ModelConfig, Records, RowDtype, ValueDecoder

_STEPS = 8  # of float32, for the few operations that are no sums, the checks' own among them

_LEVELS = {
    "int8": torch.arange(-127.0, 128.0),
    "int4": torch.from_numpy(INT4_LEVELS),
    "nf4": torch.from_numpy(NF4_LEVELS),
}


def rounding_slack(terms: int) -> float:
    """Say how far two float32 computations of the same rows may be apart, relative to the largest number of a row.

    The last bits of a float32 sum depend on the order of its terms, which depends on how many rows are computed at
    once; so a number that lies between two that can be stored may be rounded to either. The difference grows with the
    square root of the number of terms; docs/parity.md, "Records", has what was measured.

    Args:
        terms: Of the longest sum; 0 where rows are read, not computed.
    """
    return float(np.finfo(np.float32).eps * (_STEPS + terms**0.5))


class StoredRows:
    """What a store's records [n] hold, as float32, beside the source's rows."""

    def __init__(self, records: Records, config: ModelConfig, dtype: RowDtype, slack: float) -> None:
        """Take records of a store with this dtype; `slack` is from `rounding_slack`."""
        self._records, self._dtype, self._slack = records, dtype, slack
        self._decoder = ValueDecoder(dtype)
        rows = ROW_FORMATS[dtype]
        self._scales = {vector.name: vector.scale for vector in config.record_vectors() if rows.scale}
        self.plain: torch.dtype = getattr(torch, rows.plain)  # of what is not quantized

    def dtype(self, vector: str) -> torch.dtype:
        """Return what a vector's numbers are rounded to before they are compared: float32 if it is quantized."""
        return torch.float32 if self._scales.get(vector) else self.plain

    def embedding(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings [n, d], and which of them are the source's rounded, bool [n]."""
        found = torch.from_numpy(self._records["embedding"].astype(np.float32))
        return found, _is_rounded(found, exact, self.plain, self._slack)

    def vector(self, layer: int, name: str, exact: Tensor) -> tuple[Tensor, Tensor]:
        """Return a vector [n, *shape] of the layer with this index among those that have experts; as `embedding`."""
        stored = self._records["layers"][:, layer]
        scale_name = self._scales.get(name, "")
        if not scale_name:
            found = torch.from_numpy(stored[name].astype(np.float32))
            return found, _is_rounded(found, exact, self.plain, self._slack)
        out = np.empty(exact.shape, np.float32)
        self._decoder.decode(stored[name], stored[scale_name], out)
        found, scale = torch.from_numpy(out), torch.from_numpy(stored[scale_name].astype(np.float32))
        return found, _is_quantized(found, exact, scale, self._dtype, self._slack)


def _is_rounded(found: Tensor, exact: Tensor, dtype: torch.dtype, relative_slack: float) -> Tensor:
    """Tell which rows hold the nearest numbers of a floating-point dtype."""
    nearest = exact.to(dtype).float()
    slack = relative_slack * exact.abs().amax(-1, keepdim=True)
    return _all_rows((found - exact).abs() <= (nearest - exact).abs() + slack)


def _is_quantized(found: Tensor, exact: Tensor, scale: Tensor, dtype: RowDtype, relative_slack: float) -> Tensor:
    """Tell which rows keep the largest number of each group, and for all others the nearest that its scale allows."""
    groups = exact.reshape(*scale.shape, -1)
    kept = found.reshape(*scale.shape, -1)
    largest = groups.abs().amax(-1, keepdim=True)
    slack = relative_slack * largest
    # A float16 scale is off by 2^-11 of itself, or by 2^-25 where it is subnormal; the largest level is at most 8.
    rounding = largest * 2**-11 + 8 * 2**-25 if ROW_FORMATS[dtype].scale == "float16" else 0.0
    is_largest = groups.abs() >= largest - slack
    largest_kept = (is_largest & ((kept - groups).abs() <= rounding + slack)).any(-1)
    levels = _LEVELS[dtype]
    unit = torch.where(scale == 0, 1.0, scale)[..., None]
    nearest = levels[torch.bucketize(groups / unit, (levels[1:] + levels[:-1]) / 2)] * scale[..., None]
    as_near = (kept - groups).abs() <= (nearest - groups).abs() + slack
    return _all_rows(largest_kept & as_near.all(-1))


def _all_rows(agrees: Tensor) -> Tensor:
    return agrees.flatten(1).all(1)
