"""Checking a graph against the rules of a phone's compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import onnx
import onnx_ir as ir

from molkv_bundle import BundleError, MolkvError, one_line
from molkv_export.lint import coreml, nnapi, rules
from molkv_export.lint.operators import REFUSED, TABLES, Compiler, supported_operators
from molkv_export.lint.rules import dims, infer_shapes, lift_constants, node_name


class Finding(msgspec.Struct, frozen=True):
    """A reason why a compiler refuses a node or another part of a graph."""

    node: str  # name of the node (or of its first output), graph, function, input or output
    operator: str  # the node's operator, or "graph", "function", "input" or "output"
    reason: str  # what was found and what was expected


class LintResult(msgspec.Struct, frozen=True):
    """The result of checking a graph for one compiler. Constant nodes are not counted."""

    compiler: Compiler
    operators: dict[str, int]  # nodes by operator, in alphabetical order
    nodes: int
    accepted: int
    partitions: int  # number of subgraphs that the compiler would compile
    findings: list[Finding]


class _Rules(NamedTuple):
    max_rank: int
    dtypes: tuple[ir.DataType, ...]  # allowed dtypes of the graph's inputs and outputs
    reasons: Callable[[ir.Node], Iterator[str]]


_RULES: dict[Compiler, _Rules] = {
    "coreml": _Rules(coreml.MAX_RANK, coreml.DTYPES, coreml.reasons),
    "nnapi": _Rules(nnapi.MAX_RANK, nnapi.DTYPES, nnapi.reasons),
}


def lint_file(path: Path) -> list[LintResult]:
    """Check a graph's file against the rules of every compiler. Weights are not read.

    Raises:
        BundleError: The onnx package cannot read the file.
        MissingExtraError: The installed ONNX Runtime does not list a compiler's operators.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        return [lint(model, compiler) for compiler in get_args(Compiler)]
    except MolkvError:
        raise
    except Exception as error:  # for an untrusted graph, the onnx package can raise errors of any kind
        raise BundleError(f"{path}: the onnx package cannot read it: {one_line(error)}") from error


def lint(model: onnx.ModelProto, compiler: Compiler) -> LintResult:
    """Find everything in a graph that a compiler refuses, with the reasons.

    Args:
        model: A graph of fixed shapes. Its weights are not read and need not be loaded.
        compiler: CoreML (as an MLProgram) or NNAPI.

    Raises:
        MissingExtraError: The installed ONNX Runtime does not list the compiler's operators.
    """
    findings = []
    try:
        shaped = infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        shaped = infer_shapes(model, strict=False)
        message = " ".join(str(error).split())
        findings.append(
            Finding(model.graph.name, "graph", f"its shapes are invalid in ONNX, expected a valid graph: {message}")
        )
    whole = lift_constants(shaped)
    findings += _whole_graph(whole, compiler)
    accepted = {}
    for node in whole.graph:
        reasons = list(_reasons(node, compiler))
        findings += [Finding(node_name(node), node.op_type, reason) for reason in reasons]
        accepted[node] = not reasons
    return LintResult(
        compiler=compiler,
        operators=dict(sorted(Counter(node.op_type for node in accepted).items())),
        nodes=len(accepted),
        accepted=sum(accepted.values()),
        partitions=count_partitions(accepted, accepted),
        findings=findings,
    )


def count_partitions(nodes: Iterable[ir.Node], accepted: Mapping[ir.Node, bool]) -> int:
    """Return the number of subgraphs that the compiler would compile.

    ONNX Runtime partitions a graph in rounds. Every node gets the earliest round that two rules allow:

    - The node's round is not before the round of any node whose result it uses.
    - If the node is refused, its round is after the round of any accepted node whose result it uses.

    The accepted nodes of a round are one subgraph, even if they are not connected.

    Args:
        nodes: All nodes, in topological order.
        accepted: Whether the compiler accepts each node.
    """
    rounds: dict[ir.Node, int] = {}
    for node in nodes:
        producers = [producer for producer in node.predecessors() if producer in rounds]
        waits = (rounds[producer] + (accepted[producer] and not accepted[node]) for producer in producers)
        rounds[node] = max(waits, default=0)
    return len({number for node, number in rounds.items() if accepted[node]})


def _whole_graph(model: ir.Model, compiler: Compiler) -> Iterator[Finding]:
    for function in model.functions.values():
        yield Finding(function.name, "function", "the model defines a function, expected none")
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            reason = rules.dtype(kind, value, _RULES[compiler].dtypes)
            if reason:
                yield Finding(value.name or "", kind, reason)


def _reasons(node: ir.Node, compiler: Compiler) -> Iterator[str]:
    """Yield the reasons why a compiler refuses a node.

    If the operator is refused, nothing else is checked. The compiler's own rules are checked only if the shapes of all
    inputs are known.
    """
    found = list(rules.structure(node)) or list(_operator(node, compiler))
    yield from found
    if found:
        return
    yield from rules.shapes(node, _RULES[compiler].max_rank)
    yield from rules.constants(node)
    if all(dims(value) is not None for value in node.inputs if value is not None):
        yield from _RULES[compiler].reasons(node)


def _operator(node: ir.Node, compiler: Compiler) -> Iterator[str]:
    if node.op_type not in supported_operators(compiler):
        yield f"the operator is {node.op_type}, expected one of the operators in {TABLES[compiler]}"
    elif node.op_type in REFUSED[compiler]:
        yield REFUSED[compiler][node.op_type]
