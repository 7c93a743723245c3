"""Weights that are in RAM only while they are used, for models whose weights do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from molkv_export.checkpoints import LM_HEAD
from molkv_export.source.arithmetic import in_own_dtype

KEPT_BYTES = 2 * 1024**3
"""Largest total size in bytes of float32 weights that stay in RAM."""


def streamed_weights(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the weights that a source model does not keep in RAM.

    If all weights are larger than `KEPT_BYTES`, these are all matrices except the LM head, which is used for a few
    positions at a time.

    Args:
        shapes: The shapes of the dense weights by name.
    """
    if weight_bytes(shapes.values()) <= KEPT_BYTES:
        return []
    return [name for name, shape in shapes.items() if len(shape) > 1 and name != LM_HEAD]


def source_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the most RAM in bytes for the dense weights of a source model; arguments as in `streamed_weights`.

    A weight that is loaded is in RAM twice: as it is read and as it is rounded. So the largest weight that is kept, in
    most models the LM head, counts twice while the model is made. No streamed weight is in RAM at that time; later, the
    kept weights and two copies of a streamed one are.
    """
    streamed = set(streamed_weights(shapes))
    kept = [weight_bytes([shape]) for name, shape in shapes.items() if name not in streamed]
    loaded = [2 * weight_bytes([shapes[name]]) for name in streamed]
    return sum(kept) + max([*loaded, *kept], default=0)


def weight_bytes(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return the size in bytes of float32 weights with these shapes."""
    return sum(4 * math.prod(shape) for shape in shapes)


def stream(model: nn.Module, names: Iterable[str], load: Callable[[str], Tensor]) -> None:
    """Make the modules of a model load some of their weights when they run, and drop them afterwards.

    Args:
        model: The model. These weights have no data.
        names: Names of weights of `nn.Linear` modules.
        load: A function that returns a weight.
    """
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        _stream_one(module, name, load)


def _stream_one(module: nn.Module, name: str, load: Callable[[str], Tensor]) -> None:
    empty = module.weight

    def before(module: nn.Module, _inputs: object) -> None:
        with in_own_dtype():
            module.weight = nn.Parameter(load(name), requires_grad=False)

    def after(module: nn.Module, _inputs: object, _output: object) -> None:
        module.weight = empty

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)
