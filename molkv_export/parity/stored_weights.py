"""What a dense weight is when it has been stored.

This is written from the formats' definitions (`docs/bundle-format.md`, "Dense weights"), without the exporter's
quantizer, so that it finds mistakes in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molkv_bundle import GraphInfo
from molkv_export.checkpoints import LM_HEAD

_HEAD_BLOCK = 128


def stored_weight(name: str, weight: Tensor, graph: GraphInfo, plain: tuple[str, ...]) -> Tensor:
    """Give what a graph multiplies with where the checkpoint has a float32 tensor.

    Args:
        name: The tensor's.
        weight: The tensor, a matrix [out, in] or a vector.
        graph: How the bundle stores its weights.
        plain: How the names of those end that are float32 in every graph.
    """
    if weight.dim() == 1 or name.endswith(plain) or graph.dense_dtype == "float32":
        return weight
    if graph.dense_dtype == "float16":
        return weight.half().float()
    if graph.dense_dtype == "qdq-int8":
        scale = weight.abs().max() / 127
        return weight if name == LM_HEAD or scale == 0 else (weight / scale).round() * scale
    if name == LM_HEAD:
        return _in_blocks(weight, 8, _HEAD_BLOCK)
    if graph.dense_dtype == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return torch.where(scale == 0, 0.0, (weight / scale).round() * scale)
    return _in_blocks(weight, 4, graph.block_size)


def _in_blocks(weight: Tensor, bits: int, block: int) -> Tensor:
    """Round to multiples of a scale for every block of a row; the number of largest size is kept, as -2^(bits - 1)."""
    rows, columns = weight.shape
    blocks = torch.nn.functional.pad(weight, (0, -columns % block)).reshape(rows, -1, block)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    half = 2 ** (bits - 1)
    scale = largest / -half
    codes = torch.where(scale == 0, 0.0, (blocks / scale).round()).clamp(-half, half - 1)
    stored: Tensor = (codes * scale).reshape(rows, -1)[:, :columns]
    return stored
