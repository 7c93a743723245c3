"""Filling the dense graph with a checkpoint's weights, by name and lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from molkv_export.checkpoints import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.graph.build import DenseGraph
from molkv_export.graph.linear import Linear

_ROWS_AT_A_TIME = 4096


def attach_weights(
    graph: DenseGraph, checkpoint: Checkpoint, scales: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})
) -> None:
    """Give every initializer without data a lazy tensor that reads it from the checkpoint when the graph is saved.

    Scales of activations and of a quantized KV cache are in no checkpoint; they are given by name.
    """
    linears = {f"{name}.weight": linear for name, linear in graph.linears.items()}
    for name, value in graph.model.graph.initializers.items():
        if name in scales:
            value.const_value = ir.tensor(scales[name], name=name)
        elif value.const_value is None:
            weight = source_weight(name)
            linear = linears.get(weight)
            read = (
                _vector_reader(name, checkpoint, value) if linear is None else _reader(name, weight, linear, checkpoint)
            )
            value.const_value = _lazy(read, value)


def source_weight(initializer: str) -> str:
    """Name the weight that an initializer is made from: quantized ones have scales beside them."""
    return initializer.removesuffix("_scale")


def source_names(weight: str, tied: bool) -> list[str]:
    """Name the tensors of the checkpoint that make up a weight, in the order of its columns."""
    if weight.endswith("qkv_proj.weight"):
        return [weight.replace("qkv_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
    weight = weight.replace(".qkv_proj.", ".")  # of a graph that keeps query, key and value apart
    return [EMBEDDING if tied and weight == LM_HEAD else weight]


def _vector_reader(name: str, checkpoint: Checkpoint, value: ir.Value) -> Callable[[], npt.NDArray[Any]]:
    assert value.dtype is not None
    dtype = value.dtype.numpy()

    def read() -> npt.NDArray[Any]:
        vector: npt.NDArray[Any] = checkpoint.tensor(name).numpy().astype(dtype, copy=False)
        return vector

    return read


def _reader(name: str, weight: str, linear: Linear, checkpoint: Checkpoint) -> Callable[[], npt.NDArray[Any]]:
    sources = source_names(weight, checkpoint.config.tie_word_embeddings)
    parameter = name[weight.rindex(".") + 1 :]

    def read() -> npt.NDArray[Any]:
        # Matrices are transposed piece by piece: of the LM head there is never a second copy.
        out, column = np.empty(linear.shape, np.float32), 0
        for source in sources:
            rows = checkpoint.shape(source)[0]
            for start in range(0, rows, _ROWS_AT_A_TIME):
                stop = min(rows, start + _ROWS_AT_A_TIME)
                out[:, column + start : column + stop] = checkpoint.tensor(source, start, stop).numpy().T
            column += rows
        return linear.encode(out)[parameter]

    return read


def _lazy(read: Callable[[], npt.NDArray[Any]], value: ir.Value) -> ir.LazyTensor:
    assert value.dtype is not None
    assert isinstance(value.shape, ir.Shape)
    return ir.LazyTensor(lambda: ir.Tensor(read(), name=value.name), value.dtype, value.shape, name=value.name)
