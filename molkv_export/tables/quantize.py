"""From float32 to the numbers that a store holds (`docs/bundle-format.md`, "Numbers"); `molkv_runtime` decodes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from molkv_bundle import NF4_LEVELS, ROW_FORMATS, RowDtype


class Quantized(NamedTuple):
    """Rows as they are stored."""

    value: Tensor  # [..., codes of a row]
    scale: Tensor  # [..., scales of a row]


def quantize(rows: Tensor, dtype: RowDtype) -> Quantized:
    """Round rows [..., d] to the nearest numbers that int8, int4 or nf4 have; a scale can become infinite."""
    return {"int8": _int8, "int4": _int4, "nf4": _nf4}[dtype](rows.float())


def _int8(rows: Tensor) -> Quantized:
    """One scale for a whole row, so that its largest number becomes 127 or -127."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return Quantized((rows / _divisor(scale)).round().clamp(-127, 127).to(torch.int8), scale)


def _int4(rows: Tensor) -> Quantized:
    """Llama.cpp's Q4_0: the number of largest magnitude in a group, with its sign, becomes -8."""
    groups = _grouped(rows, ROW_FORMATS["int4"].group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half()
    codes = (groups / _divisor(scale.float())).round().clamp(-8, 7) + 8
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _nf4(rows: Tensor) -> Quantized:
    """QLoRA's NF4: the number of largest magnitude in a group becomes 1 or -1."""
    groups = _grouped(rows, ROW_FORMATS["nf4"].group)
    scale = groups.abs().amax(-1, keepdim=True).half()
    levels = torch.from_numpy(NF4_LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / _divisor(scale.float()), between, out_int32=True)
    return Quantized(_packed(codes.to(torch.uint8).reshape(rows.shape)), scale.squeeze(-1))


def _grouped(rows: Tensor, size: int) -> Tensor:
    return rows.reshape(*rows.shape[:-1], -1, size)


def _divisor(scale: Tensor) -> Tensor:
    """Divide by 1 where the scale is 0: all numbers are (nearly) 0 there, and stay it."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _packed(codes: Tensor) -> Tensor:
    return codes[..., 0::2] | codes[..., 1::2] << 4
