"""Checks that find, without a phone, the nodes of a static graph that ONNX Runtime's providers for phones refuse.

Such a provider is a compiler. A node that the compiler refuses runs on the CPU, without an error message. Copying
tensors between the CPU and the compiled parts then takes more time than the compiler saves. `lint` names every refused
node and the reason. `lint` has more rules than ONNX Runtime's own checker (`official_check`), which considers only
operators and shapes. Both checkers read the graph's file. ONNX Runtime optimizes a graph before a provider gets
the graph; `optimized_graph` returns the optimized graph.
"""

from molkv_export.lint.lint import Finding, LintResult, lint, lint_file
from molkv_export.lint.operators import Compiler, OfficialResult, official_check
from molkv_export.lint.optimized import optimized_graph

__all__ = [
    "Compiler",
    "Finding",
    "LintResult",
    "OfficialResult",
    "lint",
    "lint_file",
    "official_check",
    "optimized_graph",
]
