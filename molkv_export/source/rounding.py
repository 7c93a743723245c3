"""Rounding of the source's weights and activations as in a bundle, and checks of the rounding of a store's records.

This module follows the definitions of the formats and does not use the exporter's quantizer. So the checks detect
mistakes of the quantizer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from molkv_bundle import (
    INT4_LEVELS,
    NF4_LEVELS,
    ROW_FORMATS,
    Bundle,
    GraphInfo,
    ModelConfig,
    Records,
    RowDtype,
    ValueDecoder,
)
from molkv_export.checkpoints import LM_HEAD
from molkv_export.graph.files import load_graphs
from molkv_export.source.blocks import pieces, rounded_in_blocks

# Allowed error, in float32 epsilons, of the few operations that are not sums, including those of the checks below.
_STEPS = 8

_LEVELS = {
    "int8": torch.arange(-127.0, 128.0),
    "int4": torch.from_numpy(INT4_LEVELS),
    "nf4": torch.from_numpy(NF4_LEVELS),
}


def rounding_slack(terms: int) -> float:
    """Return the allowed difference of two float32 computations of a row, relative to the row's largest number.

    The last bits of a float32 sum depend on the order of its terms, which depends on how many rows are computed at
    once. So a number near the middle between two numbers of a format may be rounded to either of them. The difference
    grows with the square root of the number of terms; docs/parity.md, "Records", has measurements.

    Args:
        terms: Number of terms of the longest sum; 0 if rows are read, not computed.
    """
    return float(np.finfo(np.float32).eps * (_STEPS + terms**0.5))


class StoredRows:
    """The records [n] of a store, decoded to float32 and compared with the source's rows."""

    def __init__(self, records: Records, config: ModelConfig, dtype: RowDtype, slack: float) -> None:
        """Keep the records of a store whose dtype is `dtype`. `slack` is a result of `rounding_slack`."""
        self._records, self._dtype, self._slack = records, dtype, slack
        self._decoder = ValueDecoder(dtype)
        rows = ROW_FORMATS[dtype]
        self._scales = {vector.name: vector.scale for vector in config.record_vectors() if rows.scale}
        self.plain: torch.dtype = getattr(torch, rows.plain)  # dtype of the vectors that are not quantized

    def dtype(self, vector: str) -> torch.dtype:
        """Return the floating-point dtype of a vector in the store; float32 if the vector is quantized."""
        return torch.float32 if self._scales.get(vector) else self.plain

    def embedding(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stored embeddings [n, d], and whether each is a correct rounding of `exact`, bool [n]."""
        found = torch.from_numpy(self._records["embedding"].astype(np.float32))
        return found, _is_rounded(found, exact, self.plain, self._slack)

    def vector(self, layer: int, name: str, exact: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stored rows of a vector, [n, *shape], and whether each is a correct rounding of `exact`, bool [n].

        `layer` is the layer's index among the layers with experts.
        """
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
    """Return, for each row, whether `found` is `exact` rounded to the nearest numbers of a floating-point dtype."""
    nearest = exact.to(dtype).float()
    slack = relative_slack * exact.abs().amax(-1, keepdim=True)
    return _all_rows((found - exact).abs() <= (nearest - exact).abs() + slack)


def _is_quantized(found: Tensor, exact: Tensor, scale: Tensor, dtype: RowDtype, relative_slack: float) -> Tensor:
    """Return, for each row, whether `found` is a correct quantization of `exact`.

    A group is the numbers that share a scale. The number with the largest magnitude in a group may have only the error
    that the rounding of the scale causes. Every number must be the nearest one that the scale allows.
    """
    groups = exact.reshape(*scale.shape, -1)
    kept = found.reshape(*scale.shape, -1)
    largest = groups.abs().amax(-1, keepdim=True)
    slack = relative_slack * largest
    # A float16 scale has an error of at most 2^-11 of the scale, or 2^-25 if it is subnormal. Levels are at most 8.
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


def stored_weight(
    name: str, weight: Tensor, graph: GraphInfo, plain: tuple[str, ...], scales: Tensor | None = None
) -> Tensor:
    """Return a weight of the checkpoint, rounded as in a bundle's graph, in float32.

    Args:
        name: The tensor's name.
        weight: The tensor, a float32 matrix [out, in] or a vector.
        graph: The graph's entry in the manifest.
        plain: Suffixes of the names of tensors that are never quantized.
        scales: The result of `checked_scales` for this weight, float32 [out, blocks]; None if the graph does not store
            this weight in blocks.
    """
    if graph.kv_dtype == "float16":  # the graph computes in float16
        return weight.half().float()
    if weight.dim() == 1 or name.endswith(plain) or graph.dense_dtype == "float32":
        return weight
    if graph.dense_dtype == "float16":
        return weight.half().float()
    if graph.dense_dtype == "qdq-int8":
        scale = weight.abs().max() / 127
        return weight if name == LM_HEAD or scale == 0 else (weight / scale).round() * scale
    if graph.dense_dtype == "int8" or (name == LM_HEAD and scales is None):
        return _rounded_rows(weight)
    return rounded_in_blocks(weight, graph.block_size, scales)


def _rounded_rows(weight: Tensor) -> Tensor:
    """Round each number of a weight [out, in] to the nearest of the 255 multiples of its row's scale.

    Rows are rounded in pieces, so that only the weight and the result have the weight's size. The result does not
    depend on the pieces, since each row has its own scale.
    """
    rounded = torch.empty_like(weight)
    for rows in pieces(weight):
        scale = weight[rows].abs().amax(1, keepdim=True) / 127
        rounded[rows] = torch.where(scale == 0, 0.0, (weight[rows] / scale).round() * scale)
    return rounded


class Rounding(NamedTuple):
    """A rounding to uint8 codes with one scale and zero point."""

    scale: float
    zero_point: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return x rounded to the nearest codes and decoded again."""
        codes = ((x / self.scale).round() + self.zero_point).clamp(0, 255)
        return (codes - self.zero_point) * self.scale


def round_activations(model: nn.Module, bundle: Bundle) -> None:
    """Make a model round the inputs and outputs of its products as a bundle's qdq-int8 graph does."""
    for name, rounding in _roundings(load_graphs(bundle)[1]).items():
        place, _, side = name.rpartition(".")
        product = model.get_submodule(place.replace(".qkv_proj.", "."))
        if side == "input":
            product.register_forward_pre_hook(lambda _, inputs, rounding=rounding: rounding(inputs[0]))
        else:
            product.register_forward_hook(lambda _, _inputs, output, rounding=rounding: rounding(output))


def _roundings(graph: onnx.ModelProto) -> dict[str, Rounding]:
    """Return the roundings of a graph's activations, by the product's name followed by ".input" or ".output"."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    ends = ("input_zero_point", "output_zero_point")
    names = [name.removesuffix("_zero_point") for name in tensors if name.endswith(ends)]
    values = {
        name: [numpy_helper.to_array(tensors[f"{name}_{part}"]) for part in ("scale", "zero_point")] for name in names
    }
    return {name: Rounding(float(scale), int(zero_point)) for name, (scale, zero_point) in values.items()}
