"""The values of a graph, as rules look at them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def lift_constants(model: onnx.ModelProto) -> ir.Model:
    """Read a model; its Constant nodes become initializers, as ONNX Runtime makes them when it loads a graph."""
    graph = ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    return graph


def infer_shapes(model: onnx.ModelProto, *, strict: bool = True) -> onnx.ModelProto:
    """Fill in all shapes. Weights need not be loaded.

    Raises:
        onnx.shape_inference.InferenceError: In a strict inference, a node contradicts ONNX.
    """
    return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)


def is_constant(value: ir.Value) -> bool:
    """Tell whether a value is known when the graph is loaded; an initializer that is an input too can be replaced."""
    return value.is_initializer() and not value.is_graph_input()


def dims(value: ir.Value) -> tuple[int, ...] | None:
    """Give the shape, None if it is not fixed."""
    if value.shape is None:
        return None
    fixed = tuple(dim for dim in value.shape if isinstance(dim, int))
    return fixed if len(fixed) == len(value.shape) else None


def contents(value: ir.Value) -> npt.NDArray[Any] | None:
    """Give the contents of a constant, None if they are in another file or are not there yet."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    if isinstance(tensor, ir.TensorProtoTensor) and not any(getattr(tensor.raw, field) for field in _DATA_FIELDS):
        return None
    return tensor.numpy()


def nbytes(value: ir.Value) -> int:
    """Give the size of a value of fixed shape and known type."""
    shape = dims(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    count = 1
    for dim in shape:
        count *= dim
    return count * value.dtype.bitwidth // 8


def dtype_name(value: ir.Value) -> str:
    """Name the type as NumPy does."""
    return "of unknown type" if value.dtype is None else str(value.dtype.numpy())


def produced_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Give the node that computes a value, if it has this operator."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == operator else None


def node_name(node: ir.Node) -> str:
    """Name a node; where it has no name, its first output does."""
    return node.name or (node.outputs[0].name if node.outputs else None) or ""
