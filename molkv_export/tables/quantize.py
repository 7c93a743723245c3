"""Quantizing float32 rows for a store (`docs/bundle-format.md`, "Numbers"). `ValueDecoder` decodes the result."""

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

    A scale that is too large for float16 becomes infinite; the caller must check that scales are finite.
    """
    return {"int8": _int8, "int4": _int4, "nf4": _nf4}[dtype](rows.float())


def _int8(rows: Tensor) -> Quantized:
    """Quantize with one scale for each row; the row's number with the largest magnitude becomes 127 or -127."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return Quantized((rows / _divisor(scale)).round().clamp(-127, 127).to(torch.int8), scale)


def _int4(rows: Tensor) -> Quantized:
    """Quantize as in llama.cpp's Q4_0: a group has a signed scale; its number with the largest magnitude becomes -8."""
    groups = _grouped(rows, ROW_FORMATS["int4"].group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half()
    codes = (groups / _divisor(scale.float())).round().clamp(-8, 7) + 8
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _nf4(rows: Tensor) -> Quantized:
    """Quantize as in QLoRA's NF4: a group has one scale; its number with the largest magnitude becomes 1 or -1."""
    groups = _grouped(rows, ROW_FORMATS["nf4"].group)
    scale = groups.abs().amax(-1, keepdim=True).half()
    levels = torch.from_numpy(NF4_LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / _divisor(scale.float()), between, out_int32=True)
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _grouped(rows: Tensor, size: int) -> Tensor:
    return rows.reshape(*rows.shape[:-1], -1, size)


def _divisor(scale: Tensor) -> Tensor:
    """Return the scales, with 1 in place of 0. Where a scale is 0, all numbers are (nearly) 0, and are stored as 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _packed(codes: Tensor) -> Tensor:
    return codes[..., 0::2] | codes[..., 1::2] << 4
