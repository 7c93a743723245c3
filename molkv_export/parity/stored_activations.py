"""Rounding of activations in the source model, as a graph does whose scales were fixed when it was exported.

The scales are read from the graph, since they are part of what is stored; rounding is PyTorch's own.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from molkv_bundle import Bundle
from molkv_export.parity.graphs import load_graphs


class Rounding(NamedTuple):
    """uint8 codes with one scale."""

    scale: float
    zero_point: int

    def __call__(self, x: Tensor) -> Tensor:
        """Round to the nearest code, and back to float32."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)


def round_activations(model: nn.Module, bundle: Bundle) -> None:
    """Let the products of a model round what goes in and comes out, where those of a bundle's graph do."""
    for name, rounding in _roundings(load_graphs(bundle)[1]).items():
        place, _, side = name.rpartition(".")
        product = model.get_submodule(place.replace(".qkv_proj.", "."))
        if side == "input":
            product.register_forward_pre_hook(lambda _module, inputs, rounding=rounding: rounding(inputs[0]))
        else:
            product.register_forward_hook(lambda _module, _inputs, output, rounding=rounding: rounding(output))


def _roundings(graph: onnx.ModelProto) -> dict[str, Rounding]:
    """Give them by the name of a product and "input" or "output"."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    ends = ("input_zero_point", "output_zero_point")
    names = [name.removesuffix("_zero_point") for name in tensors if name.endswith(ends)]
    values = {
        name: [numpy_helper.to_array(tensors[f"{name}_{part}"]) for part in ("scale", "zero_point")] for name in names
    }
    return {name: Rounding(float(scale), int(zero_point)) for name, (scale, zero_point) in values.items()}
