"""Quantizing float32 rows for a store (`docs/bundle-format.md`, "Numbers"); `ValueDecoder` decodes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from molkv_bundle import NF4_LEVELS, ROW_FORMATS, RowDtype


class Quantized(NamedTuple):
    """Rows in a quantized format."""

    value: Tensor  # the codes, [..., bytes of a row]
    scale: Tensor  # [..., scales of a row]


def quantize(rows: Tensor, dtype: RowDtype) -> Quantized:
    """Round rows [..., d] to the nearest codes of int8, int4 or nf4.

    A scale becomes infinite where float16 cannot hold it; the caller has to check that.
    """
    return {"int8": _int8, "int4": _int4, "nf4": _nf4}[dtype](rows.float())


def _int8(rows: Tensor) -> Quantized:
    """Quantize with one scale for a row; its number of largest magnitude becomes 127 or -127."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return Quantized((rows / _divisor(scale)).round().clamp(-127, 127).to(torch.int8), scale)


def _int4(rows: Tensor) -> Quantized:
    """Quantize as llama.cpp's Q4_0, one signed scale for a group; its number of largest magnitude becomes -8."""
    groups = _grouped(rows, ROW_FORMATS["int4"].group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half()
    codes = (groups / _divisor(scale.float())).round().clamp(-8, 7) + 8
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _nf4(rows: Tensor) -> Quantized:
    """Quantize as QLoRA's NF4, one scale for a group; its number of largest magnitude becomes 1 or -1."""
    groups = _grouped(rows, ROW_FORMATS["nf4"].group)
    scale = groups.abs().amax(-1, keepdim=True).half()
    levels = torch.from_numpy(NF4_LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / _divisor(scale.float()), between, out_int32=True)
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _grouped(rows: Tensor, size: int) -> Tensor:
    return rows.reshape(*rows.shape[:-1], -1, size)


def _divisor(scale: Tensor) -> Tensor:
    """Return the scale, but 1 where it is 0: the numbers there are 0 or nearly 0, and are stored as 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _packed(codes: Tensor) -> Tensor:
    return codes[..., 0::2] | codes[..., 1::2] << 4
