"""The rules of ONNX Runtime's CoreML provider with ModelFormat=MLProgram."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from molkv_export.lint import rules
from molkv_export.lint.rules import dims, is_constant

MAX_RANK = 5
DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def reasons(node: ir.Node) -> Iterator[str]:
    """Yield the reasons why CoreML refuses a node; the shapes of the node's inputs must be known."""
    yield from rules.dtypes(node, DTYPES)
    match node.op_type:
        case "MatMul":
            yield from _matmul(node)
        case "Gemm":
            yield from rules.gemm(node)
        case "Slice":
            yield from rules.slice_steps(node)
        case "Cast":
            yield from _cast(node)


def _matmul(node: ir.Node) -> Iterator[str]:
    """Refuse products of vectors, since CoreML computes them wrongly, and broadcasting, since it needs copies."""
    a, b = node.inputs
    if a is None or b is None:
        return
    left, right = dims(a) or (), dims(b) or ()
    if min(len(left), len(right)) < 2:
        yield f"A and B have {len(left)} and {len(right)} dimensions, expected at least 2"
    elif left[:-2] != right[:-2] and not is_constant(b):
        yield f"A {list(left)} and B {list(right)} differ in batch dimensions, expected equal ones, or a constant B"


def _cast(node: ir.Node) -> Iterator[str]:
    """Require that a node computes the input: the provider accepts a Cast only together with that node."""
    (value,) = node.inputs
    if value is not None and value.producer() is None:
        yield f"input {value.name} is an input of the graph or a constant, expected the output of a node"
