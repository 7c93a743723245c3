"""Scales of an int8 KV cache: how large keys and values of the source model get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molkv_export.checkpoints import Checkpoint
from molkv_export.parity.phases import Ids
from molkv_export.parity.reference import SourceModel
from molkv_runtime.rope import Floats

# Other texts may have larger numbers than those looked at, and what is too large is cut off. It costs 0.14 bits.
_MARGIN = 1.1


def kv_scales(checkpoint: Checkpoint, texts: list[Ids]) -> dict[str, Floats]:
    """Run the source model over texts, and give one scale for each channel of each head.

    Keys are cached rotated, and a rotation turns a pair of channels by any angle: both get the scale of its length.

    Returns:
        By the name of the dense graph's initializer, float32 [1, Hkv, 1, head_dim].
    """
    model, config = SourceModel(checkpoint), checkpoint.config
    largest: dict[str, Tensor] = {}

    def watch(module: Any, name: str, measure: Callable[[Tensor], Tensor]) -> None:
        def keep(_module: object, _inputs: object, output: Tensor) -> None:
            sizes = measure(output.reshape(-1, config.num_key_value_heads, config.head_dim)).amax(0)
            largest[name] = torch.maximum(largest.get(name, sizes), sizes)

        module.register_forward_hook(keep)

    layer: Any  # torch's types know no attributes of modules in a list
    for index, layer in enumerate(model.model.layers):
        watch(layer.self_attn.k_proj, f"model.layers.{index}.self_attn.k_scale", _lengths_of_pairs)
        watch(layer.self_attn.v_proj, f"model.layers.{index}.self_attn.v_scale", torch.abs)
    for ids in texts:
        model.logits(ids, last=1)
    return {name: _scale(sizes) for name, sizes in largest.items()}


def _lengths_of_pairs(keys: Tensor) -> Tensor:
    first, second = keys.chunk(2, dim=-1)
    return torch.hypot(first, second).repeat(1, 1, 2)


def _scale(sizes: Tensor) -> Floats:
    scale = np.maximum(_MARGIN * sizes.numpy() / 127, np.finfo(np.float32).tiny)
    return scale.astype(np.float32)[None, :, None]
