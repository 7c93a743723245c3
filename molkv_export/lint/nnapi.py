"""The rules of ONNX Runtime's NNAPI provider, for Android 10 and later."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from molkv_export.lint import rules
from molkv_export.lint.rules import PARAMETERS, contents, dims, dtype_name, is_constant, produced_by

MAX_RANK = 4
DTYPES = (ir.DataType.FLOAT,)
# Integers are allowed only between QuantizeLinear and DequantizeLinear.
_ACTIVATION = (ir.DataType.UINT8,)
_WEIGHT = (ir.DataType.UINT8, ir.DataType.INT8)


def reasons(node: ir.Node) -> Iterator[str]:
    """Yield the reasons why NNAPI refuses a node; the shapes of the node's inputs must be known."""
    match node.op_type:
        case "QuantizeLinear":
            yield from _quantize(node)
            return
        case "DequantizeLinear":
            yield from _dequantize(node)
            return
        case "MatMul":
            yield from _quantized_product(node) if _is_quantized(node) else _matmul(node)
        case "Gemm":
            yield from rules.gemm(node)
        case "Slice":
            yield from rules.slice_steps(node)
        case "Softmax":
            yield from _softmax(node)
        case "Concat":
            yield from _concat(node)
        case "Max" | "Min":
            if len(node.inputs) != 2:
                yield f"it has {len(node.inputs)} inputs, expected 2"
        case "Split":
            parts = [dims(value) for value in node.outputs]
            if len(set(parts)) > 1:
                yield f"its outputs have the shapes {parts}, expected equal shapes"
    yield from rules.dtypes(node, DTYPES)


def _matmul(node: ir.Node) -> Iterator[str]:
    """Require a fully connected layer (B is a constant matrix), or two tensors with the same batch dimensions."""
    a, b = node.inputs
    if a is None or b is None:
        return
    left, right = dims(a) or (), dims(b) or ()
    if len(left) == len(right) >= 3:
        if left[:-2] != right[:-2]:
            yield f"A {list(left)} and B {list(right)} differ in batch dimensions, expected the same"
    elif len(left) != 2 or len(right) != 2:
        yield f"A is {list(left)} and B {list(right)}, expected 2 dimensions each (and a constant B), or 3 or more each"
    elif not is_constant(b):
        yield f"B is computed ({b.name}), expected a constant B, or A and B with 3 or more dimensions"


def _softmax(node: ir.Node) -> Iterator[str]:
    value = node.inputs[0]
    shape = None if value is None else dims(value)
    if shape is not None and len(shape) < 2:
        yield f"input has the shape {list(shape)}, expected at least 2 dimensions"


def _concat(node: ir.Node) -> Iterator[str]:
    value, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    rank = 0 if value is None else len(dims(value) or ())
    if not -rank <= axis < rank:
        yield f"axis is {axis}, expected {-rank} to {rank - 1}"


def _quantize(node: ir.Node) -> Iterator[str]:
    """Require a conversion of float32 to uint8, with one scale for the whole tensor."""
    yield from _parameters(node)
    yield from _dtype("input", node.inputs[0], DTYPES)
    yield from _dtype("output", node.outputs[0], _ACTIVATION)


def _dequantize(node: ir.Node) -> Iterator[str]:
    """Require a conversion of uint8 to float32; int8 is also allowed for weights of products."""
    value = node.inputs[0]
    if value is None:
        return
    yield from _parameters(node)
    yield from _dtype("output", node.outputs[0], DTYPES)
    if produced_by(value, "QuantizeLinear") is None and not is_constant(value):
        yield f"input {value.name} is {dtype_name(value)}, expected a constant or the output of QuantizeLinear"
    elif _is_weight(node):
        yield from _dtype("weight", value, _WEIGHT)
        if value.dtype == ir.DataType.INT8:
            yield from _symmetric(node)
    else:
        yield from _dtype("activation", value, _ACTIVATION)


def _is_quantized(node: ir.Node) -> bool:
    """Return whether a MatMul must follow the rules of quantized products.

    ONNX Runtime fuses a quantized product with the nodes before and after it. If A and B have two dimensions and B
    comes from DequantizeLinear, the product must be quantized. If A and B have more dimensions, the product is
    quantized only if both come from DequantizeLinear and the output goes to QuantizeLinear; otherwise it is a product
    of floats.
    """
    a, b = (produced_by(value, "DequantizeLinear") is not None for value in node.inputs)
    two_dimensions = all(len(dims(value) or ()) == 2 for value in node.inputs if value is not None)
    return b if two_dimensions else a and b and _goes_to_quantize(node)


def _quantized_product(node: ir.Node) -> Iterator[str]:
    """Require that A and B come from DequantizeLinear and that the result goes to one QuantizeLinear.

    A and B must have two dimensions, and B must be a constant.
    """
    for name, value in zip("AB", node.inputs, strict=True):
        if value is None:
            continue
        source = produced_by(value, "DequantizeLinear")
        if source is None:
            yield f"{name} ({value.name}) is float32, expected the output of DequantizeLinear in a quantized product"
        elif name == "B" and source.inputs[0] is not None and not is_constant(source.inputs[0]):
            yield f"B is computed ({value.name}), expected a constant in a quantized product"
        if len(dims(value) or ()) != 2:
            yield f"{name} has the shape {list(dims(value) or ())}, expected 2 dimensions in a quantized product"
    if not _goes_to_quantize(node):
        users = sorted(user.op_type for user in node.outputs[0].consumers())
        yield f"the result is used by {users or 'an output'}, expected one QuantizeLinear after a quantized product"


def _goes_to_quantize(node: ir.Node) -> bool:
    out = node.outputs[0]
    return not out.is_graph_output() and [use.node.op_type for use in out.uses()] == ["QuantizeLinear"]


def _is_weight(node: ir.Node) -> bool:
    """Return whether the input of a DequantizeLinear is constant and the output is used only as weight of products."""
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
