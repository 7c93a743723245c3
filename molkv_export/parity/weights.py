"""Decode the dense weights of a graph as docs/bundle-format.md says, and compare them with the source.

The comparison uses no code of the exporter's encoder, so that it detects mistakes in the encoder. Rounding has its own
implementation in `source/rounding.py`, and decoding has its own implementation in this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from molkv_bundle import Bundle, BundleError
from molkv_export.graph.files import load_graphs, read_initializer, weights_file
from molkv_export.graph.initializers import source_names
from molkv_export.source.model import SourceModel

_SCALE = "_scale"  # suffix of the name of a weight's scales
_ZERO_POINT = 8  # the 4-bit code that means 0
_FOUR_BITS = 15

# A share of a step. If a number is this close to the middle between two codes, both codes are accepted. An encoder
# multiplies the number by the reciprocal of the scale and adds 8. The error of the product is up to
# 8 (2^-24 + 2^-24), and that of the sum, which is below 16, up to 2^-21.
_MIDDLE = 2.0**-19
# A scale below 2^-126 has fewer digits, or its reciprocal is infinite. Any 4-bit code is then possible, so elements may
# differ by 15 * 2^-128.
_NOTHING = 2.0**-124


class WeightsResult(msgspec.Struct, frozen=True):
    """Result of comparing the dense weights of all graphs of a profile."""

    weights: int  # number of compared parameters of the reference model
    numbers: int  # number of elements of these parameters
    failure: str  # description of the first parameter that differs; empty if there is none


def weights_agreement(bundle: Bundle, source: SourceModel) -> WeightsResult:
    """Compare every element of every dense weight, as stored in the graphs of a profile, with the source.

    Each element must be equal, bit for bit, to the source's element after rounding as the format says. There is one
    exception: if the source's element is in the middle between two codes, both codes are accepted.

    Args:
        bundle: Bundle, open for a profile.
        source: Model that the bundle was made from, rounded as the bundle stores it.

    Raises:
        BundleError: The file of weights is damaged, or a weight has the wrong shape.
    """
    shapes = source.dense_shapes
    missing = dict.fromkeys(shapes)
    numbers = 0
    for name, found in _stored_parameters(bundle, shapes):
        if name in missing:
            del missing[name]
            numbers += found.numel()
        if failure := _difference(name, found, source.dense_weight(name), source):
            return WeightsResult(len(shapes) - len(missing), numbers, failure)
    failure = f"{next(iter(missing))} is in no graph" if missing else ""
    return WeightsResult(len(shapes) - len(missing), numbers, failure)


def _difference(name: str, found: Tensor, expected: Tensor, source: SourceModel) -> str:
    """Describe the first wrong element of a parameter, and count the wrong elements; return "" if there are none."""
    if found.shape != expected.shape:
        return f"{name} has shape {list(found.shape)}, expected {list(expected.shape)}"
    places = (found != expected).nonzero(as_tuple=True)
    if not len(places[0]):
        return ""
    ours, theirs, exact = (each[places].double() for each in (found, expected, source.exact_weight(name)))
    step = (ours - theirs).abs()
    is_either = (exact - (ours + theirs) / 2).abs() <= _MIDDLE * step
    is_wrong = ~(is_either | (step <= _NOTHING))  # negated, so that NaN is wrong
    if not is_wrong.any():
        return ""
    first = int(is_wrong.int().argmax())
    where = [int(axis[first]) for axis in places]
    return (
        f"{name} {where} is {ours[first]:.9g}, expected {theirs[first]:.9g} "
        f"({int(is_wrong.sum())} of {found.numel()} numbers differ)"
    )


def _stored_parameters(bundle: Bundle, like: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and elements of each parameter in `like`, float32 [out, in] or [size]; one weight is in RAM at a time.

    `like` has the shapes of the parameters by name.

    A weight that several graphs read from the same place is yielded once. A weight that each graph stores separately is
    yielded for each graph.
    """
    path = weights_file(bundle)
    known: dict[str, list[onnx.TensorProto]] = {}
    for graph in load_graphs(bundle).values():
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        for weight in tensors:
            parts = [tensors[name] for name in (weight, weight + _SCALE) if name in tensors]
            parameters = source_names(weight, tied=False)  # even a tied LM head is a parameter of the model
            if parts == known.get(weight) or not like.keys() >= set(parameters):
                continue
            known[weight] = parts
            rows = [like[parameter][0] for parameter in parameters]
            arrays = [read_initializer(part, path) for part in parts]
            try:
                stored = _decoded(arrays, like[parameters[0]][-1]).split_with_sizes(rows)
            except (ValueError, RuntimeError) as error:
                shapes = " and ".join(str(list(array.shape)) for array in arrays)
                raise BundleError(f"{path}: {weight} has shape {shapes}, expected {sum(rows)} columns") from error
            yield from zip(parameters, stored, strict=True)


def _decoded(parts: list[npt.NDArray[Any]], inputs: int) -> Tensor:
    """Decode a stored weight to float32 [out, in]; return a vector unchanged.

    Args:
        parts: One array of floats, [in, out] or [size]; or an array of codes and an array of scales. int8 codes are
            [in, out], with one scale or with scales [out]. 4-bit codes are [out, blocks, bytes], with scales
            [out, blocks]. A byte holds two codes, the first in its lower half.
        inputs: Length of a row (`in`). The last block of a row may be longer, with padding.
    """
    codes, *scales = parts
    if not scales:
        numbers = torch.from_numpy(codes.astype(np.float32))
        return numbers.T if codes.ndim == 2 else numbers
    (scale,) = scales
    if codes.dtype == np.int8:
        return torch.from_numpy(codes.astype(np.float32) * scale).T
    steps = np.empty((*codes.shape, 2), np.float32)
    steps[..., 0], steps[..., 1] = codes & _FOUR_BITS, codes >> 4
    blocks = (steps.reshape(*codes.shape[:2], -1) - _ZERO_POINT) * scale[..., None]
    return torch.from_numpy(blocks.reshape(len(codes), -1)[:, :inputs])
