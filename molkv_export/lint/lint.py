"""Checking a graph against the rules of a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import onnx
import onnx_ir as ir

from molkv_export.lint import coreml, nnapi, rules
from molkv_export.lint.partitions import count_partitions
from molkv_export.lint.result import Finding, LintResult
from molkv_export.lint.tables import REFUSED, TABLES, Target, supported_operators
from molkv_export.lint.values import dims, infer_shapes, lift_constants, node_name


class _Rules(NamedTuple):
    max_rank: int
    dtypes: tuple[ir.DataType, ...]  # of the graph's inputs and outputs
    reasons: Callable[[ir.Node], Iterator[str]]


_RULES: dict[Target, _Rules] = {
    "coreml": _Rules(coreml.MAX_RANK, coreml.DTYPES, coreml.reasons),
    "nnapi": _Rules(nnapi.MAX_RANK, nnapi.DTYPES, nnapi.reasons),
}


def lint(model: onnx.ModelProto, target: Target) -> LintResult:
    """Find everything in a graph that a target does not take.

    Args:
        model: A graph of fixed shapes. Its weights are not read and need not be loaded.
        target: CoreML (as an MLProgram) or NNAPI.

    Raises:
        MissingExtraError: The installed ONNX Runtime does not list the target's operators.
    """
    findings = []
    try:
        shaped = infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        shaped = infer_shapes(model, strict=False)
        message = " ".join(str(error).split())
        findings.append(
            Finding(model.graph.name, "graph", f"its shapes contradict ONNX, expected a valid graph: {message}")
        )
    whole = lift_constants(shaped)
    findings += _whole_graph(whole, target)
    accepted = {}
    for node in whole.graph:
        reasons = list(_reasons(node, target))
        findings += [Finding(node_name(node), node.op_type, reason) for reason in reasons]
        accepted[node] = not reasons
    return LintResult(
        target=target,
        operators=dict(sorted(Counter(node.op_type for node in accepted).items())),
        nodes=len(accepted),
        accepted=sum(accepted.values()),
        partitions=count_partitions(accepted, accepted),
        findings=findings,
    )


def _whole_graph(model: ir.Model, target: Target) -> Iterator[Finding]:
    for function in model.functions.values():
        yield Finding(function.name, "function", "the model defines a function, expected none")
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            reason = rules.dtype(kind, value, _RULES[target].dtypes)
            if reason:
                yield Finding(value.name or "", kind, reason)


def _reasons(node: ir.Node, target: Target) -> Iterator[str]:
    """Say what is wrong with a node. Where its operator or shapes are, nothing more is looked at."""
    found = list(rules.structure(node)) or list(_operator(node, target))
    yield from found
    if found:
        return
    yield from rules.shapes(node, _RULES[target].max_rank)
    yield from rules.constants(node)
    if all(dims(value) is not None for value in node.inputs if value is not None):
        yield from _RULES[target].reasons(node)


def _operator(node: ir.Node, target: Target) -> Iterator[str]:
    if node.op_type not in supported_operators(target):
        yield f"the operator is {node.op_type}, expected one of {TABLES[target]}"
    elif node.op_type in REFUSED[target]:
        yield REFUSED[target][node.op_type]
