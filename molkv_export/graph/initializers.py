"""Filling dense graphs with a checkpoint's weights, by name; a weight is read when the graph is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from molkv_bundle import Floats
from molkv_export.checkpoints import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.graph.build import BuiltGraph
from molkv_export.graph.linear import Linear

_ROWS_AT_A_TIME = 4096
_SMALL_BYTES = 256  # tensors up to this size are stored in the graph's own file
_MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}


def attach_weights(
    graphs: Iterable[BuiltGraph],
    checkpoint: Checkpoint,
    scales: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
) -> None:
    """Set each initializer without data to a lazy tensor, which reads the checkpoint when the graph is saved.

    Args:
        graphs: Graphs with the same weights; they differ in the length of a call.
        checkpoint: The source of the weights.
        scales: Calibrated scales and zero points of activations and of a quantized KV cache, by the initializer's name.
    """
    encoder = _WeightEncoder(checkpoint)
    for graph in graphs:
        linears = {f"{name}.weight": linear for name, linear in graph.linears.items()}
        for name, value in graph.model.graph.initializers.items():
            if name in scales:
                value.const_value = ir.tensor(scales[name], name=name)
            elif value.const_value is None:
                linear = linears.get(source_weight(name))
                read = _vector_reader(name, checkpoint, value) if linear is None else encoder.reader(name, linear)
                value.const_value = _lazy(read, value)


def source_weight(initializer: str) -> str:
    """Return the name of the weight in an initializer; a quantized weight has two initializers, codes and scales."""
    return initializer.removesuffix("_scale")


def source_names(weight: str, tied: bool) -> list[str]:
    """Return the names of the checkpoint's tensors that make up a weight, in the order of its columns."""
    for merged, parts in _MERGED.items():
        if weight.endswith(f".{merged}.weight"):
            return [weight.replace(merged, part) for part in parts]
    weight = weight.replace(".qkv_proj.", ".")  # graphs with separate query, key and value (`SplitQkv`)
    return [EMBEDDING if tied and weight == LM_HEAD else weight]


def _vector_reader(name: str, checkpoint: Checkpoint, value: ir.Value) -> Callable[[], npt.NDArray[Any]]:
    assert value.dtype is not None
    dtype = value.dtype.numpy()

    def read() -> npt.NDArray[Any]:
        vector: npt.NDArray[Any] = checkpoint.tensor(name).numpy().astype(dtype, copy=False)
        return vector

    return read


class _WeightEncoder:
    """A reader and encoder of weights. A quantized weight becomes several arrays (codes, scales).

    For each graph, onnx_ir saves first the large arrays, weight by weight, and then the small arrays of all weights. In
    this order every weight is read and encoded once: a large array is kept until it is requested or the next weight is
    read, and a small array is kept forever.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._arrays: dict[str, npt.NDArray[Any]] = {}  # by the names of initializers

    def reader(self, name: str, linear: Linear) -> Callable[[], npt.NDArray[Any]]:
        """Return a function that returns the array of an initializer."""

        def read() -> npt.NDArray[Any]:
            if name not in self._arrays:
                self._encode(source_weight(name), linear)
            array = self._arrays[name]
            if array.nbytes > _SMALL_BYTES:
                del self._arrays[name]
            return array

        return read

    def _encode(self, weight: str, linear: Linear) -> None:
        self._arrays = {name: array for name, array in self._arrays.items() if array.nbytes <= _SMALL_BYTES}
        module = weight.removesuffix("weight")
        for parameter, array in linear.encode(self._transposed(weight, linear)).items():
            self._arrays[module + parameter] = array

    def _transposed(self, weight: str, linear: Linear) -> Floats:
        """Read a weight [in, out] piece by piece, so that the large LM head is never in RAM twice."""
        out, column = np.empty(linear.shape, np.float32), 0
        for source in source_names(weight, self._checkpoint.config.tie_word_embeddings):
            rows = self._checkpoint.shape(source)[0]
            for start in range(0, rows, _ROWS_AT_A_TIME):
                stop = min(rows, start + _ROWS_AT_A_TIME)
                out[:, column + start : column + stop] = self._checkpoint.tensor(source, start, stop).numpy().T
            column += rows
        return out


def _lazy(read: Callable[[], npt.NDArray[Any]], value: ir.Value) -> ir.LazyTensor:
    assert value.dtype is not None
    assert isinstance(value.shape, ir.Shape)
    return ir.LazyTensor(lambda: ir.Tensor(read(), name=value.name), value.dtype, value.shape, name=value.name)
