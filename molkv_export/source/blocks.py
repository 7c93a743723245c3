"""Rounding of the source's weights in blocks, with the scales that a bundle's graph stores.

Many scales are possible for a block, so the exporter searches for a good one. This module does not repeat the search:
it checks that a stored scale is a correct result (docs/bundle-format.md, "Blocks of int4"). It does not use the
exporter's quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from molkv_bundle import Bundle
from molkv_export.graph.files import load_graphs, read_initializer, weights_file
from molkv_export.graph.initializers import source_names

_SCALE = "_scale"  # suffix of the name of a weight's scales
_ROWS_AT_A_TIME = 512  # a piece fits into a CPU's cache
_LOW, _HIGH = -8, 7  # the smallest and the largest multiple of a scale
_SUM = 2.0**-40  # relative slack for float64 sums, whose last bits depend on the order of the terms


def block_scales(bundle: Bundle, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the scales, float32 [out, blocks], of each parameter that a bundle's graph stores in blocks, by name.

    Args:
        bundle: The bundle, open for a profile.
        shapes: Shapes of the dense graph's parameters, by name; that of a matrix is [out, in].

    Raises:
        BundleError: The file of weights is damaged.
    """
    path, size = weights_file(bundle), bundle.graph().block_size
    found: dict[str, Tensor] = {}
    for graph in load_graphs(bundle).values():
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        for weight, codes in tensors.items():
            parameters = source_names(weight, tied=False)  # even a tied LM head is a parameter of the model
            is_known = weight + _SCALE in tensors and shapes.keys() >= set(parameters)
            if not is_known or codes.data_type != TensorProto.UINT8:
                continue
            rows = [shapes[parameter][0] for parameter in parameters]
            scales = read_initializer(tensors[weight + _SCALE], path).astype(np.float32)
            # A wrong shape is an error when the weights are compared.
            if scales.shape == (sum(rows), -(-shapes[parameters[0]][-1] // size)):
                found.update(zip(parameters, torch.from_numpy(scales).split_with_sizes(rows), strict=True))
    return found


def checked_scales(weight: Tensor, size: int, scales: Tensor) -> Tensor:
    """Return the scales with which a weight is rounded in blocks, float32 [out, blocks].

    If a stored scale is not a correct result of the exporter's search, the block's scale is the one by its largest
    magnitude. So a wrong scale in a graph cannot hide an error.

    Args:
        weight: float32 [out, in].
        size: Numbers of a block, which is a part of a row.
        scales: The scales that a graph stores, float32 [out, blocks].
    """
    found = torch.empty_like(scales)
    for rows in pieces(weight):
        blocks, stored = _blocks(weight[rows], size), scales[rows, :, None]
        by_largest = _by_largest(blocks)
        found[rows] = torch.where(_is_better(stored, blocks, by_largest), stored, by_largest)[..., 0]
    return found


def rounded_in_blocks(weight: Tensor, size: int, scales: Tensor | None) -> Tensor:
    """Round each number of a weight to the nearest of 16 multiples (-8 to 7) of its block's scale.

    Args:
        weight: float32 [out, in].
        size: Numbers of a block, which is a part of a row.
        scales: The result of `checked_scales`; None: the scales by the largest magnitude of each block.

    Returns:
        The rounded weight, float32 [out, in].
    """
    rounded, columns = torch.empty_like(weight), weight.shape[1]
    for rows in pieces(weight):
        blocks = _blocks(weight[rows], size)
        scale = _by_largest(blocks) if scales is None else scales[rows, :, None]
        rounded[rows] = (_steps(blocks, scale) * scale).reshape(len(blocks), -1)[:, :columns]
    return rounded


def pieces(weight: Tensor) -> Iterator[slice]:
    """Yield the rows of pieces of a weight [out, in], so that temporary tensors are small."""
    for start in range(0, len(weight), _ROWS_AT_A_TIME):
        yield slice(start, start + _ROWS_AT_A_TIME)


def _blocks(rows: Tensor, size: int) -> Tensor:
    """Return the blocks of rows, [rows, blocks, size]; the last block of a row is filled with zeros."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(len(rows), -1, size)


def _by_largest(blocks: Tensor) -> Tensor:
    """Return the scales [rows, blocks, 1] with which the number with the largest magnitude in a block becomes -8.

    If two numbers of different sign have this magnitude, the negative one becomes -8.
    """
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    return torch.where(high > -low, high, low) / _LOW


def _steps(blocks: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, (blocks / scale).round()).clamp(_LOW, _HIGH)


def _is_better(scale: Tensor, blocks: Tensor, by_largest: Tensor) -> Tensor:
    """Return whether each scale is a correct result of the exporter's search, bool [rows, blocks, 1].

    No other scale may have a smaller squared error with the same codes, and the squared error may not be larger than
    with the scale by the largest magnitude.
    """
    exact, steps = blocks.double(), _steps(blocks, scale).double()
    best = (exact * steps).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True)
    ends = ((best * (1 - _SUM)).float(), (best * (1 + _SUM)).float())
    is_best = (torch.minimum(*ends) <= scale) & (scale <= torch.maximum(*ends))
    error, limit = (
        (_steps(blocks, each).double() * each - exact).square().sum(-1, keepdim=True) for each in (scale, by_largest)
    )
    return is_best & (error <= limit * (1 + _SUM))
