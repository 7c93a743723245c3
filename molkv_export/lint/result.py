"""What the lint found."""

from __future__ import annotations

import msgspec

from molkv_export.lint.tables import Target


class Finding(msgspec.Struct, frozen=True):
    """One reason why a provider does not take something."""

    node: str  # name of the node, or of its first output; of the value, where `operator` is an input or an output
    operator: str  # or "graph", "function", "input", "output"
    reason: str  # what was found and what was expected


class LintResult(msgspec.Struct, frozen=True):
    """What a provider takes of a graph, nodes that are constants not counted."""

    target: Target
    operators: dict[str, int]  # nodes by operator, in alphabetical order
    nodes: int
    accepted: int
    partitions: int  # subgraphs that the provider will compile
    findings: list[Finding]

    @property
    def clean(self) -> bool:
        """Whether nothing was found: one partition takes the whole graph."""
        return not self.findings
