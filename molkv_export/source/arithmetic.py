"""Running the source model in two ways: in float64, and with rounding errors as large as those of a correct driver.

The limits for a correct driver follow from the difference between the two results. They must be measured for each model
and each set of texts, since the effect of rounding errors depends on how well conditioned the model is. The rounding of
weights needs no limits, since it is the same in every driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from molkv_bundle import Bundle, GoldenLimits, GraphInfo
from molkv_export.graph.files import load_graphs, weights_file
from molkv_export.modeling import ReferenceModel

DRAWS = 4  # number of runs with random errors, each with another seed
_ROWS = 4096  # rows of a weight that are converted to float64 at a time
_STEPS = 127  # codes of activations on each side of zero
# With an int8 window or qdq-int8, the reference rounds to codes as the graph does. A correct driver then makes rare but
# large errors: if a number is near the middle between two codes, the driver may choose another code than the reference.
# A few runs may contain no such error, so the random errors of these runs are larger by this factor.
_MORE_ROUGH = 16
# Other kernels make other errors of the same size. The root mean square of their errors is about the same. The largest
# error depends on chance, so its limit is wider.
_MAX_ABS_FACTOR, _RELATIVE_L2_FACTOR = 2.0, 1.5


_is_off: ContextVar[bool] = ContextVar("is_off", default=False)


@contextmanager
def in_own_dtype() -> Iterator[None]:
    """Make `Float64` have no effect within this context."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


class Float64(TorchFunctionMode):
    """A context in which PyTorch converts float32 tensors to float64 before it computes with them."""

    def __torch_function__(
        self, func: Callable[..., Any], _types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch with its float32 arguments converted to float64."""
        if _is_off.get():
            return func(*args, **(kwargs or {}))
        if func is Tensor.float:
            return args[0]
        if func is nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        exact = torch.utils._pytree.tree_map(_in_float64, (args, kwargs or {}))
        return func(*exact[0], **exact[1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply in float64. The weight is converted in pieces, since the LM head is large."""
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
    """Make a model compute, within this context, with the rounding errors that a bundle's graph allows.

    - The output of every module except the experts gets a random error, as large as a few roundings in the graph's
      dtype.
    - The input of a product with an int8 or int4 weight is rounded. The step is 1/127 of the largest number of a
      position; no kernel has a larger step.
    - With an int8 KV cache, keys and values are rounded with the scales of the cache.

    Args:
        model: The model; its products with weights are `nn.Linear`.
        bundle: The bundle.
        draw: Seed of the random errors. Draw 0 rounds with the steps of the format. Other draws round with slightly
            smaller steps, so that the errors of different draws are independent but have nearly the same size.
    """
    graph = bundle.graph()
    finer = 1 + draw / 32  # divides the steps. Rounding to larger steps could leave the range of the calibrated scales.
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
    """Return the limits for a driver's errors, given the largest errors of the runs with `rough_arithmetic`."""
    return GoldenLimits(_MAX_ABS_FACTOR * max_abs, _RELATIVE_L2_FACTOR * relative_l2)


def _error(name: str, module: nn.Module, graph: GraphInfo) -> float:
    """Return the standard deviation of a module's relative error."""
    if graph.kv_dtype == "float16":  # the graph computes in float16, but accumulates in float32
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
    """Make a model round keys and values with the scales in the graph, and yield the hooks that do this.

    These hooks round keys before rotation; the graph rounds keys after rotation. The errors have the same size, since
    both channels of a rotated pair have the same scale.
    """
    graph, folder = next(iter(load_graphs(bundle).values())), str(weights_file(bundle).parent)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for cache in bundle.config.kv_caches():
        for module, side in zip(model.cached(cache.layer), ("k", "v"), strict=True):
            scale = numpy_helper.to_array(tensors[f"model.layers.{cache.layer}.self_attn.{side}_scale"], folder)
            step = torch.tensor(scale.reshape(-1) / finer)
            yield module.register_forward_hook(
                lambda _, _inputs, output, step=step: _rounded_to_steps(output, step.view(output.shape[2:]))
            )


def _rounded_to_steps(x: Tensor, step: Tensor) -> Tensor:
    return (x / step).round().clamp(-_STEPS - 1, _STEPS) * step
