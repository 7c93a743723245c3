"""How exactly the source model is computed: in float64, or as roughly as the format of a bundle lets a driver do it.

From the two follows how far a sound driver may be from the source model, for this model and these texts: a weight's
rounding is the same everywhere, but what arithmetic costs depends on how well conditioned the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from molkv_bundle import Bundle, GoldenLimits, GraphInfo
from molkv_export.graph.files import load_graphs, weights_file
from molkv_export.modeling import ReferenceModel

DRAWS = 4  # rough runs, each with errors of its own
_ROWS = 4096  # of a weight, in float64 at a time
_STEPS = 127  # of activations, to each side of zero
# Where the reference rounds as the graph does (an int8 window, qdq-int8), a driver differs where a number that stands
# between two codes becomes the other one: a large error, and a rare one, so rough runs get errors that make more.
_MORE_ROUGH = 16
# Other kernels make other errors of this size: their root mean square is about the same, their largest is chance.
_MAX_ABS_FACTOR, _RELATIVE_L2_FACTOR = 2.0, 1.5


class Float64(TorchFunctionMode):
    """While it is entered, float32 tensors are computed with in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], _types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch with what it was given, in float64."""
        if func is Tensor.float:
            return args[0]
        if func is nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        exact = torch.utils._pytree.tree_map(_in_float64, (args, kwargs or {}))
        return func(*exact[0], **exact[1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply in float64, with some rows of the weight in float64 at a time: the LM head's are as many as tokens."""
    rows = torch.empty(min(_ROWS, len(weight)), weight.shape[1], dtype=torch.float64)
    x, found = x.double(), torch.empty(*x.shape[:-1], len(weight), dtype=torch.float64)
    for start in range(0, len(weight), _ROWS):
        part = slice(start, min(start + _ROWS, len(weight)))
        rows[: part.stop - start] = weight[part]
        found[..., part] = nn.functional.linear(x, rows[: part.stop - start])
    return found if bias is None else found + bias.double()


def _in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


@contextmanager
def rough_arithmetic(model: ReferenceModel, bundle: Bundle, draw: int) -> Iterator[None]:
    """Let a model compute as roughly as the format of a bundle's graph allows, until the context is left.

    What every module returns is off by some roundings of the float type that the graph computes in. What goes into
    products with int8 or int4 weights is rounded to 127 steps of the largest number of a position, the coarsest that
    kernels do; keys and values are rounded by the scales of an int8 cache.

    Args:
        model: The model, whose products with weights are `nn.Linear`.
        bundle: The bundle.
        draw: 0 is the format itself; others have errors of the same size that are independent.
    """
    graph = bundle.graph()
    finer = 1 + draw / 32  # other codes, whose range is still that of the calibrated scales
    generator = torch.Generator().manual_seed(draw)
    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if name and ".experts." not in f".{name}.":
            hooks.append(module.register_forward_hook(_perturb(_error(name, module, graph), generator)))
            is_rounded = isinstance(module, nn.Linear) and not f"{name}.weight".endswith(model.plain_parameters)
            if is_rounded and graph.dense_dtype in ("int8", "int4"):
                hooks.append(module.register_forward_pre_hook(lambda _, inputs: _rounded_rows(inputs[0], finer)))
    if graph.kv_dtype == "int8":
        hooks += _round_caches(model, bundle, finer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def limits_of(max_abs: float, relative_l2: float) -> GoldenLimits:
    """Return how far a driver may be off, from the largest errors of rough runs."""
    return GoldenLimits(_MAX_ABS_FACTOR * max_abs, _RELATIVE_L2_FACTOR * relative_l2)


def _error(name: str, module: nn.Module, graph: GraphInfo) -> float:
    """Return what a module's results may be off by, relative to themselves, as a standard deviation."""
    if graph.kv_dtype == "float16":  # the graph computes in it, but adds up in float32
        return 2.0**-11
    terms = module.in_features if isinstance(module, nn.Linear) else 0
    error = float(2 + terms**0.5 / 8) * 2.0**-24  # the last bits of a sum depend on the order of its terms
    feeds_window = graph.window_dtype == "int8" and ".expert_mixer.query_" in name
    return _MORE_ROUGH * error if feeds_window or graph.dense_dtype == "qdq-int8" else error


def _perturb(size: float, generator: torch.Generator) -> Callable[[nn.Module, Any, Any], Any]:
    def perturb(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        return output * (1 + size * torch.randn(output.shape, generator=generator))

    return perturb


def _rounded_rows(x: Tensor, finer: float) -> Tensor:
    step = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / (_STEPS * finer)
    return (x / step).round() * step


def _round_caches(model: ReferenceModel, bundle: Bundle, finer: float) -> Iterator[RemovableHandle]:
    """Round keys and values by the scales in the graph: keys before they are rotated, since a pair's are the same."""
    graph, folder = next(iter(load_graphs(bundle).values())), str(weights_file(bundle).parent)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for cache in bundle.config.kv_caches():
        for module, side in zip(model.cached(cache.layer), ("k", "v"), strict=True):
            scale = numpy_helper.to_array(tensors[f"model.layers.{cache.layer}.self_attn.{side}_scale"], folder)
            step = torch.tensor(scale.reshape(-1) / finer)
            yield module.register_forward_hook(
                lambda _, _inputs, output, step=step: (output / step).round().clamp(-_STEPS - 1, _STEPS) * step
            )
