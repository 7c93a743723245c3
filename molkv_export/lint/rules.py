"""The rules that CoreML and NNAPI share, and functions that rules use to examine a graph.

A rule yields the reasons why a node is refused. If no rule yields a reason, the node is accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

LARGEST_CONSTANT = 2**31  # bytes; the limit of a protobuf message, which both ONNX and the compiled model use

_AXES = {1: "axes"}
# Inputs that a provider reads when it compiles, by operator and position. Their dtypes need no check.
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
    """Convert a model to onnx_ir; its Constant nodes become initializers, as when ONNX Runtime loads a graph."""
    graph = ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    return graph


def infer_shapes(model: onnx.ModelProto, *, strict: bool = True) -> onnx.ModelProto:
    """Return the model with the shapes of all values. Weights need not be loaded.

    Raises:
        onnx.shape_inference.InferenceError: A node is not valid ONNX, and `strict` is true.
    """
    return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is constant. An initializer that is also an input is not constant."""
    return value.is_initializer() and not value.is_graph_input()


def dims(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a value; None if the shape is not fixed."""
    if value.shape is None:
        return None
    fixed = tuple(dim for dim in value.shape if isinstance(dim, int))
    return fixed if len(fixed) == len(value.shape) else None


def contents(value: ir.Value) -> npt.NDArray[Any] | None:
    """Return the contents of a constant; None if the contents are in another file or not loaded."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    if isinstance(tensor, ir.TensorProtoTensor) and not any(getattr(tensor.raw, field) for field in _DATA_FIELDS):
        return None
    return tensor.numpy()


def nbytes(value: ir.Value) -> int:
    """Return the size of a value in bytes; 0 if its shape is not fixed or its dtype is unknown."""
    shape = dims(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    count = 1
    for dim in shape:
        count *= dim
    return count * value.dtype.bitwidth // 8


def dtype_name(value: ir.Value) -> str:
    """Return NumPy's name of a value's dtype."""
    return "of unknown type" if value.dtype is None else str(value.dtype.numpy())


def produced_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that computes a value if the node has this operator, else None."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == operator else None


def node_name(node: ir.Node) -> str:
    """Return the name of a node, or of its first output if the node has none."""
    return node.name or (node.outputs[0].name if node.outputs else None) or ""


def computed_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Yield the inputs that are not in `PARAMETERS`, with their positions."""
    parameters = PARAMETERS.get(node.op_type, {})
    for position, value in enumerate(node.inputs):
        if value is not None and position not in parameters:
            yield position, value


def structure(node: ir.Node) -> Iterator[str]:
    """Require an operator of ONNX's default domain without subgraphs."""
    if node.domain not in ("", "ai.onnx"):
        yield f"the operator is of domain {node.domain}, expected the default domain"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        yield "it has a subgraph, expected none"


def shapes(node: ir.Node, max_rank: int) -> Iterator[str]:
    """Require that every shape is fixed, has no dimension of 0, and has at most `max_rank` dimensions."""
    for kind, values in (("input", node.inputs), ("output", node.outputs)):
        for value in values:
            if value is None or not value.name:  # an optional input or output that is left out
                continue
            shape = dims(value)
            if shape is None:
                yield f"{kind} {value.name} has the shape {value.shape}, expected a fixed shape"
            elif 0 in shape:
                yield f"{kind} {value.name} has the shape {list(shape)}, expected no dimension of 0"
            elif len(shape) > max_rank:
                yield f"{kind} {value.name} has {len(shape)} dimensions, expected at most {max_rank}"


def constants(node: ir.Node) -> Iterator[str]:
    """Require that the inputs in `PARAMETERS` are constants, and that no constant is too large."""
    for position, what in PARAMETERS.get(node.op_type, {}).items():
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None and not is_constant(value):
            yield f"{what} is computed ({value.name}), expected a constant"
    for value in node.inputs:
        if value is not None and is_constant(value) and nbytes(value) > LARGEST_CONSTANT:
            yield f"constant {value.name} has {nbytes(value)} bytes, expected at most {LARGEST_CONSTANT}"


def dtypes(node: ir.Node, allowed: Collection[ir.DataType]) -> Iterator[str]:
    """Require that all outputs, and all inputs that are not in `PARAMETERS`, have an allowed dtype."""
    for kind, values in (("input", [value for _, value in computed_inputs(node)]), ("output", node.outputs)):
        yield from (reason for value in values if (reason := dtype(kind, value, allowed)))


def dtype(kind: str, value: ir.Value, allowed: Collection[ir.DataType]) -> str | None:
    """Return the reason why a value's dtype is not allowed; None if it is allowed."""
    if value.dtype in allowed:
        return None
    expected = " or ".join(str(one.numpy()) for one in allowed)
    return f"{kind} {value.name} is {dtype_name(value)}, expected {expected}"


def slice_steps(node: ir.Node) -> Iterator[str]:
    """Require that all steps are 1; for such slices NNAPI has a simpler operator."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    values = None if steps is None else contents(steps)
    if values is not None and (values != 1).any():
        yield f"steps are {values.tolist()}, expected 1"


def gemm(node: ir.Node) -> Iterator[str]:
    """Require a fully connected layer: x @ B + C with a constant matrix B and a constant row C."""
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
