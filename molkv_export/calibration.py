"""Calibration: compute the scales that are fixed at export, from the ranges of numbers in the source model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from molkv_bundle import Floats, KVCacheShape
from molkv_export.checkpoints import Checkpoint
from molkv_export.graph.build import BuiltGraph
from molkv_export.graph.static.layers import QdqLinear
from molkv_export.source.model import Ids, SourceModel

# Numbers outside the range of a scale are clipped. Other texts may have larger numbers than the calibration texts, so
# measured ranges are multiplied by this factor. The factor costs 0.14 bits of precision.
_MARGIN = 1.1


def kv_scales(checkpoint: Checkpoint, texts: list[Ids]) -> dict[str, Floats]:
    """Run the source model over texts and return scales for an int8 KV cache, one for each channel of each head.

    The cache holds rotated keys, and a rotation turns a pair of channels by any angle. So both channels of a pair have
    the same scale. This scale follows from the norm sqrt(a^2 + b^2) of the pair.

    Returns:
        Scales by name of the dense graph's initializer, float32 [1, Hkv, 1, head_dim].
    """
    model, config = SourceModel(checkpoint), checkpoint.config
    largest: dict[str, Tensor] = {}

    def watch(module: nn.Module, cache: KVCacheShape, scale: str, measure: Callable[[Tensor], Tensor]) -> None:
        name = f"model.layers.{cache.layer}.self_attn.{scale}"

        def keep(_module: object, _inputs: object, output: Tensor) -> None:
            sizes = measure(output.reshape(-1, cache.num_key_value_heads, cache.head_dim)).amax(0)
            largest[name] = torch.maximum(largest.get(name, sizes), sizes)

        module.register_forward_hook(keep)

    for cache in config.kv_caches():
        keys, values = model.model.cached(cache.layer)
        watch(keys, cache, "k_scale", _norms_of_pairs)
        watch(values, cache, "v_scale", torch.abs)
    for ids in texts:
        model.logits(ids, last=1)
    return {name: _scale(sizes) for name, sizes in largest.items()}


def activation_scales(checkpoint: Checkpoint, graph: BuiltGraph, texts: list[Ids]) -> dict[str, npt.NDArray[Any]]:
    """Run the source model over texts; return scale and zero point for input and output of each matrix product.

    Returns:
        Scales (float32 scalars) and zero points (uint8 scalars) by name of the graph's initializer.
    """
    model = SourceModel(checkpoint)
    ranges: dict[str, tuple[float, float]] = {}

    def see(name: str, numbers: Tensor) -> None:
        least, most = ranges.get(name, (0.0, 0.0))  # the range always includes 0
        ranges[name] = min(least, float(numbers.min())), max(most, float(numbers.max()))

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _module, inputs: see(f"{name}.input", inputs[0]))
        module.register_forward_hook(lambda _module, _inputs, output: see(f"{name}.output", output))

    for name, linear in graph.linears.items():
        if isinstance(linear, QdqLinear):
            watch(name, model.model.get_submodule(name.replace(".qkv_proj.", ".")))
    for ids in texts:
        model.logits(ids, last=1)
    scales: dict[str, npt.NDArray[Any]] = {}
    for name, (least, most) in ranges.items():
        scale = np.float32(max(_MARGIN * (most - least) / 255, float(np.finfo(np.float32).tiny)))
        scales[f"{name}_scale"] = np.asarray(scale)
        scales[f"{name}_zero_point"] = np.asarray(np.clip(np.rint(-_MARGIN * least / scale), 0, 255), np.uint8)
    return scales


def _norms_of_pairs(keys: Tensor) -> Tensor:
    first, second = keys.chunk(2, dim=-1)
    return torch.hypot(first, second).repeat(1, 1, 2)


def _scale(sizes: Tensor) -> Floats:
    scale = np.maximum(_MARGIN * sizes.numpy() / 127, np.finfo(np.float32).tiny)
    return scale.astype(np.float32)[None, :, None]
