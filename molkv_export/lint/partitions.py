"""How ONNX Runtime groups the nodes that a provider takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir


def count_partitions(nodes: Iterable[ir.Node], accepted: Mapping[ir.Node, bool]) -> int:
    """Count the subgraphs that the provider will compile.

    ONNX Runtime goes through a graph in rounds. A round takes every node that can be reached, except that a refused
    node which needs something of this round's subgraph waits for the next round, and so does all that needs it. The
    accepted nodes of a round are one subgraph, even where they have nothing to do with each other.

    Args:
        nodes: In an order in which every node comes after those that it needs.
        accepted: Whether the provider takes a node.
    """
    rounds: dict[ir.Node, int] = {}
    for node in nodes:
        needed = [producer for producer in node.predecessors() if producer in rounds]
        waits = (rounds[producer] + (accepted[producer] and not accepted[node]) for producer in needed)
        rounds[node] = max(waits, default=0)
    return len({number for node, number in rounds.items() if accepted[node]})
