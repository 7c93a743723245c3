"""NNAPI's rules for integers, which exist between QuantizeLinear and DequantizeLinear only."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from molkv_export.lint import rules
from molkv_export.lint.rules import PARAMETERS
from molkv_export.lint.values import contents, dims, dtype_name, is_constant, produced_by

FLOAT = (ir.DataType.FLOAT,)
ACTIVATION = (ir.DataType.UINT8,)
WEIGHT = (ir.DataType.UINT8, ir.DataType.INT8)


def quantize(node: ir.Node) -> Iterator[str]:
    """From float32 to uint8, with one scale for the whole tensor."""
    yield from _parameters(node)
    yield from _dtype("input", node.inputs[0], FLOAT)
    yield from _dtype("output", node.outputs[0], ACTIVATION)


def dequantize(node: ir.Node) -> Iterator[str]:
    """From uint8 to float32; int8 is for weights of products."""
    value = node.inputs[0]
    if value is None:
        return
    yield from _parameters(node)
    yield from _dtype("output", node.outputs[0], FLOAT)
    if produced_by(value, "QuantizeLinear") is None and not is_constant(value):
        yield f"input {value.name} is {dtype_name(value)}, expected a constant or what QuantizeLinear computes"
    elif _is_weight(node):
        yield from _dtype("weight", value, WEIGHT)
        if value.dtype == ir.DataType.INT8:
            yield from _symmetric(node)
    else:
        yield from _dtype("activation", value, ACTIVATION)


def is_quantized(node: ir.Node) -> bool:
    """Tell whether ONNX Runtime makes one quantized product out of a MatMul and the nodes around it, or should.

    Of two dimensions a product with an integer weight is either quantized or refused. A product of more dimensions is
    also one of floats, which may happen to come out of DequantizeLinear, as long as it does not go to QuantizeLinear.
    """
    a, b = (produced_by(value, "DequantizeLinear") is not None for value in node.inputs)
    two_dimensions = all(len(dims(value) or ()) == 2 for value in node.inputs if value is not None)
    return b if two_dimensions else a and b and _goes_to_quantize(node)


def matmul(node: ir.Node) -> Iterator[str]:
    """DequantizeLinear twice, MatMul, QuantizeLinear, and a constant weight of two dimensions."""
    for name, value in zip("AB", node.inputs, strict=True):
        if value is None:
            continue
        source = produced_by(value, "DequantizeLinear")
        if source is None:
            yield f"{name} ({value.name}) is float32, expected DequantizeLinear for both inputs of a quantized product"
        elif name == "B" and source.inputs[0] is not None and not is_constant(source.inputs[0]):
            yield f"B is computed ({value.name}), expected a constant in a quantized product"
        if len(dims(value) or ()) != 2:
            yield f"{name} has the shape {list(dims(value) or ())}, expected 2 dimensions in a quantized product"
    if not _goes_to_quantize(node):
        users = sorted(user.op_type for user in node.outputs[0].consumers())
        yield f"the product goes to {users or 'an output'}, expected one QuantizeLinear after a quantized product"


def _goes_to_quantize(node: ir.Node) -> bool:
    out = node.outputs[0]
    return not out.is_graph_output() and [use.node.op_type for use in out.uses()] == ["QuantizeLinear"]


def _is_weight(node: ir.Node) -> bool:
    """Tell whether a DequantizeLinear gives nothing but weights of products."""
    uses = node.outputs[0].uses()
    source = node.inputs[0]
    products = all(use.node.op_type in ("MatMul", "Gemm") and use.idx == 1 for use in uses)
    return bool(uses) and products and source is not None and is_constant(source)


def _parameters(node: ir.Node) -> Iterator[str]:
    for position, what in PARAMETERS[node.op_type].items():
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            continue
        shape = dims(value) or ()
        if shape not in ((), (1,)):
            yield f"{what} has the shape {list(shape)}, expected one number for the whole tensor"
        elif what == "scale":
            known = contents(value)
            if known is not None and not (known > 0).all():
                yield f"scale is {known.item()}, expected more than 0"


def _symmetric(node: ir.Node) -> Iterator[str]:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if zero_point is None else contents(zero_point)
    if known is not None and known.any():
        yield f"zero point is {known.tolist()}, expected 0 for an int8 weight"


def _dtype(kind: str, value: ir.Value | None, allowed: tuple[ir.DataType, ...]) -> Iterator[str]:
    reason = None if value is None else rules.dtype(kind, value, allowed)
    if reason:
        yield reason
