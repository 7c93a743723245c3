"""Rules that both targets have. A rule yields reasons against a node; none means that it is taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from molkv_export.lint.values import contents, dims, dtype_name, is_constant, nbytes

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


def computed_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Give the inputs that are not parameters, with their positions."""
    parameters = PARAMETERS.get(node.op_type, {})
    for position, value in enumerate(node.inputs):
        if value is not None and position not in parameters:
            yield position, value


def structure(node: ir.Node) -> Iterator[str]:
    """Only plain operators of ONNX."""
    if node.domain not in ("", "ai.onnx"):
        yield f"the operator is of domain {node.domain}, expected the default domain"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        yield "it has a subgraph, expected none"


def shapes(node: ir.Node, max_rank: int) -> Iterator[str]:
    """Every shape is fixed, has no 0, and not too many dimensions."""
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
    """Parameters are constants, and no constant is too large."""
    for position, what in PARAMETERS.get(node.op_type, {}).items():
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None and not is_constant(value):
            yield f"{what} is computed ({value.name}), expected a constant"
    for value in node.inputs:
        if value is not None and is_constant(value) and nbytes(value) > LARGEST_CONSTANT:
            yield f"constant {value.name} has {nbytes(value)} bytes, expected at most {LARGEST_CONSTANT}"


def dtypes(node: ir.Node, allowed: Collection[ir.DataType]) -> Iterator[str]:
    """Everything but parameters is of an allowed type."""
    for kind, values in (("input", [value for _, value in computed_inputs(node)]), ("output", node.outputs)):
        yield from (reason for value in values if (reason := dtype(kind, value, allowed)))


def dtype(kind: str, value: ir.Value, allowed: Collection[ir.DataType]) -> str | None:
    """Say what is wrong with a value's type, None if nothing is."""
    if value.dtype in allowed:
        return None
    expected = " or ".join(str(one.numpy()) for one in allowed)
    return f"{kind} {value.name} is {dtype_name(value)}, expected {expected}"


def slice_steps(node: ir.Node) -> Iterator[str]:
    """Slices have no gaps and do not go backwards; NNAPI has a simpler operator for these."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    values = None if steps is None else contents(steps)
    if values is not None and (values != 1).any():
        yield f"steps are {values.tolist()}, expected 1"


def gemm(node: ir.Node) -> Iterator[str]:
    """A fully connected layer: x @ constant + constant row."""
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
