"""The rules that CoreML and NNAPI share, and how a rule looks at a graph.

A rule yields reasons against a node; no reason means that the node is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

LARGEST_CONSTANT = 2**31  # bytes; a protobuf message holds no more, neither of ONNX nor of what it is compiled to

_AXES = {1: "axes"}
# Inputs that a provider reads when it compiles, by operator and position. Their types do not matter.
PARAMETERS: dict[str, dict[int, str]] = {
    "Reshape": {1: "shape"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Split": {1: "split"},
    "Squeeze": _AXES,
    "Unsqueeze": _AXES,
    "ReduceMax": _AXES,
    "ReduceMean": _AXES,
    "ReduceSum": _AXES,
    "Gather": {1: "indices"},
    "GatherND": {1: "indices"},
    "Tile": {1: "repeats"},
    "Where": {0: "condition"},
    "QuantizeLinear": {1: "scale", 2: "zero point"},
    "DequantizeLinear": {1: "scale", 2: "zero point"},
}

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
    """Return the shape, None if it is not fixed."""
    if value.shape is None:
        return None
    fixed = tuple(dim for dim in value.shape if isinstance(dim, int))
    return fixed if len(fixed) == len(value.shape) else None


def contents(value: ir.Value) -> npt.NDArray[Any] | None:
    """Return the contents of a constant, None if they are in another file or are not there yet."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    if isinstance(tensor, ir.TensorProtoTensor) and not any(getattr(tensor.raw, field) for field in _DATA_FIELDS):
        return None
    return tensor.numpy()


def nbytes(value: ir.Value) -> int:
    """Return the bytes of a value of fixed shape and known type, 0 of others."""
    shape = dims(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    count = 1
    for dim in shape:
        count *= dim
    return count * value.dtype.bitwidth // 8


def dtype_name(value: ir.Value) -> str:
    """Return the name that NumPy has for the type."""
    return "of unknown type" if value.dtype is None else str(value.dtype.numpy())


def produced_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that computes a value, if it has this operator."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == operator else None


def node_name(node: ir.Node) -> str:
    """Return the name of a node; where it has none, its first output's."""
    return node.name or (node.outputs[0].name if node.outputs else None) or ""


def computed_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Yield the inputs that are not parameters, with their positions."""
    parameters = PARAMETERS.get(node.op_type, {})
    for position, value in enumerate(node.inputs):
        if value is not None and position not in parameters:
            yield position, value


def structure(node: ir.Node) -> Iterator[str]:
    """Require a plain operator of ONNX."""
    if node.domain not in ("", "ai.onnx"):
        yield f"the operator is of domain {node.domain}, expected the default domain"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        yield "it has a subgraph, expected none"


def shapes(node: ir.Node, max_rank: int) -> Iterator[str]:
    """Require that every shape is fixed, has no 0, and not too many dimensions."""
    for kind, values in (("input", node.inputs), ("output", node.outputs)):
        for value in values:
            if value is None or not value.name:  # an optional one that is left out
                continue
            shape = dims(value)
            if shape is None:
                yield f"{kind} {value.name} has the shape {value.shape}, expected numbers only"
            elif 0 in shape:
                yield f"{kind} {value.name} has the shape {list(shape)}, expected no 0"
            elif len(shape) > max_rank:
                yield f"{kind} {value.name} has {len(shape)} dimensions, expected at most {max_rank}"


def constants(node: ir.Node) -> Iterator[str]:
    """Require that parameters are constants, and that no constant is too large."""
    for position, what in PARAMETERS.get(node.op_type, {}).items():
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None and not is_constant(value):
            yield f"{what} is computed ({value.name}), expected a constant"
    for value in node.inputs:
        if value is not None and is_constant(value) and nbytes(value) > LARGEST_CONSTANT:
            yield f"constant {value.name} has {nbytes(value)} bytes, expected at most {LARGEST_CONSTANT}"


def dtypes(node: ir.Node, allowed: Collection[ir.DataType]) -> Iterator[str]:
    """Require that everything but parameters is of an allowed type."""
    for kind, values in (("input", [value for _, value in computed_inputs(node)]), ("output", node.outputs)):
        yield from (reason for value in values if (reason := dtype(kind, value, allowed)))


def dtype(kind: str, value: ir.Value, allowed: Collection[ir.DataType]) -> str | None:
    """Say what is wrong with a value's type, None if nothing is."""
    if value.dtype in allowed:
        return None
    expected = " or ".join(str(one.numpy()) for one in allowed)
    return f"{kind} {value.name} is {dtype_name(value)}, expected {expected}"


def slice_steps(node: ir.Node) -> Iterator[str]:
    """Require slices without gaps that do not go backwards; NNAPI has a simpler operator for these."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    values = None if steps is None else contents(steps)
    if values is not None and (values != 1).any():
        yield f"steps are {values.tolist()}, expected 1"


def gemm(node: ir.Node) -> Iterator[str]:
    """Require a fully connected layer: x @ constant + constant row."""
    attributes = node.attributes
    for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        value = attributes[name].value if name in attributes else default
        if value != default:
            yield f"{name} is {value}, expected {default}"
    _, b, *rest = node.inputs
    if b is not None and not is_constant(b):
        yield f"B is computed ({b.name}), expected a constant"
    if rest and rest[0] is not None:
        c, out = rest[0], dims(node.outputs[0])
        if not is_constant(c):
            yield f"C is computed ({c.name}), expected a constant"
        elif out is not None and dims(c) not in ((out[1],), (1, out[1])):
            yield f"C has the shape {list(dims(c) or ())}, expected [{out[1]}] or [1, {out[1]}]"
