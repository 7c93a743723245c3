"""What ONNX Runtime's NNAPI provider takes, from Android 10 on."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from molkv_export.lint import quantized, rules
from molkv_export.lint.values import dims, is_constant

MAX_RANK = 4
DTYPES = (ir.DataType.FLOAT,)


def reasons(node: ir.Node) -> Iterator[str]:
    """Say what is wrong with a node whose shapes are known."""
    match node.op_type:
        case "QuantizeLinear":
            yield from quantized.quantize(node)
            return
        case "DequantizeLinear":
            yield from quantized.dequantize(node)
            return
        case "MatMul":
            yield from quantized.matmul(node) if quantized.is_quantized(node) else _matmul(node)
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
                yield f"its outputs have the shapes {parts}, expected parts of one size"
    yield from rules.dtypes(node, DTYPES)


def _matmul(node: ir.Node) -> Iterator[str]:
    """A fully connected layer, or as many of them as there are matrices: nothing is broadcast."""
    a, b = node.inputs
    if a is None or b is None:
        return
    left, right = dims(a) or (), dims(b) or ()
    if len(left) == len(right) >= 3:
        if left[:-2] != right[:-2]:
            yield f"A {list(left)} and B {list(right)} differ in batch dimensions, expected the same"
    elif len(left) != 2 or len(right) != 2:
        yield f"A {list(left)} and B {list(right)} differ in rank, expected the same rank, or 2 and a constant B"
    elif not is_constant(b):
        yield f"B is computed ({b.name}), expected a constant, or 3 dimensions"


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
