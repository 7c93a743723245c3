"""The dense weights that a graph stores, decoded as docs/bundle-format.md says, and compared with the source's.

Nothing of the exporter's encoder is used, so that this finds mistakes in it: rounding is said once more in
`source/rounding.py`, what codes mean is said here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from molkv_bundle import Bundle, BundleError
from molkv_export.graph.files import load_graphs, weights_file
from molkv_export.graph.initializers import source_names
from molkv_export.source.model import SourceModel

_SCALE = "_scale"  # what the name of a weight's scales ends with
_ZERO_POINT = 8  # of codes of 4 bits
_FOUR_BITS = 15

# Of a step: how far from the middle between two codes a number may become either. An encoder multiplies by the
# reciprocal of the scale and adds 8: up to 8 (2^-24 + 2^-24), and 2^-21 for the sum, which is below 16.
_MIDDLE = 2.0**-19
# Where scales are below 2^-126 they have fewer digits, or their reciprocal is infinite: any code of 4 bits may be
# there, and so numbers that differ by 15 * 2^-128.
_NOTHING = 2.0**-124


class WeightsResult(msgspec.Struct, frozen=True):
    """Agreement of the dense weights of all graphs of a profile."""

    weights: int  # parameters of the reference model that were compared
    numbers: int  # in them
    failure: str  # the first that differs, with what was found; empty: none


def weights_agreement(bundle: Bundle, source: SourceModel) -> WeightsResult:
    """Compare every number of every dense weight, as the graphs of the bundle's profile store it, with the source's.

    A number has to be the source's, rounded as the format says, to the bit. Only where the source's is in the middle
    between two codes, either is right.

    Args:
        bundle: Opened for a profile.
        source: What it was made from, rounded as the bundle stores it.

    Raises:
        BundleError: The file of weights is damaged.
    """
    expected = source.dense_weights()
    missing = dict.fromkeys(expected)
    numbers = 0
    for name, found in _stored_parameters(bundle, expected):
        if name in missing:
            del missing[name]
            numbers += found.numel()
        if failure := _difference(name, found, expected[name], source):
            return WeightsResult(len(expected) - len(missing), numbers, failure)
    failure = f"{next(iter(missing))} is in no graph" if missing else ""
    return WeightsResult(len(expected) - len(missing), numbers, failure)


def _difference(name: str, found: Tensor, expected: Tensor, source: SourceModel) -> str:
    """Say which number of a parameter is wrong first, and how many are; empty: none."""
    if found.shape != expected.shape:
        return f"{name} has shape {list(found.shape)}, expected {list(expected.shape)}"
    places = (found != expected).nonzero(as_tuple=True)
    if not len(places[0]):
        return ""
    ours, theirs, exact = (each[places].double() for each in (found, expected, source.exact_weight(name)))
    step = (ours - theirs).abs()
    is_either = (exact - (ours + theirs) / 2).abs() <= _MIDDLE * step
    is_wrong = ~(is_either | (step <= _NOTHING))  # written so that NaN is wrong
    if not is_wrong.any():
        return ""
    first = int(is_wrong.int().argmax())
    where = [int(axis[first]) for axis in places]
    return (
        f"{name} {where} is {ours[first]:.9g}, expected {theirs[first]:.9g} "
        f"({int(is_wrong.sum())} of {found.numel()} numbers differ)"
    )


def _stored_parameters(bundle: Bundle, like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters with the names of `like`, [out, in] or [size], float32; one weight is in RAM at a time.

    What several graphs read from the same place is yielded once, what each of them has in its own file for each.
    """
    path = weights_file(bundle)
    known: dict[str, list[onnx.TensorProto]] = {}
    for graph in load_graphs(bundle).values():
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        for weight in tensors:
            parts = [tensors[name] for name in (weight, weight + _SCALE) if name in tensors]
            parameters = source_names(weight, tied=False)  # the reference model has its LM head in any case
            if parts == known.get(weight) or not like.keys() >= set(parameters):
                continue
            known[weight] = parts
            rows = [like[parameter].shape[0] for parameter in parameters]
            arrays = [_read(part, path) for part in parts]
            try:
                stored = _decoded(arrays, like[parameters[0]].shape[-1]).split_with_sizes(rows)
            except (ValueError, RuntimeError) as error:
                shapes = " and ".join(str(list(array.shape)) for array in arrays)
                raise BundleError(f"{path}: {weight} has shape {shapes}, expected {sum(rows)} columns") from error
            yield from zip(parameters, stored, strict=True)


def _read(tensor: onnx.TensorProto, path: Path) -> npt.NDArray[Any]:
    try:
        return numpy_helper.to_array(tensor, str(path.parent))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {tensor.name} cannot be read ({error})") from error


def _decoded(parts: list[npt.NDArray[Any]], inputs: int) -> Tensor:
    """Return what codes and scales stand for, float32 [out, in], or a vector as it is.

    Args:
        parts: Numbers, or codes and their scales: int8 [in, out] with one scale for all or [out]; 4 bits each, two in
            a byte, the lower half first, [out, blocks, bytes] with scales [out, blocks].
        inputs: Numbers of a row; in the last block there may be more.
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
