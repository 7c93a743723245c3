"""A dense graph that keeps its bound buffers, so that tests can read them."""

from __future__ import annotations

from typing import NamedTuple

from molkv_bundle import Arrays
from molkv_runtime import Call, Generator, Graph


class Bound(NamedTuple):
    """The buffers of one call."""

    inputs: Arrays
    outputs: Arrays


class RecordingGraph:
    """A `Graph` that hands calls on to another one and keeps their buffers, in the order of binding."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.bound: list[Bound] = []

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers to the graph."""
        self.bound.append(Bound(inputs, outputs))
        return self._graph.bind(length, inputs, outputs)


def record(generator: Generator) -> RecordingGraph:
    """Put a recording graph in front of the graph of a generator.

    The first call that new `Sequences` bind is the decode step. Its inputs are the whole KV cache and expert window.
    """
    generator.graph = recorder = RecordingGraph(generator.graph)
    return recorder
