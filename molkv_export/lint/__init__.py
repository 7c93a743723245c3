"""Checks, without a phone, of which nodes of a static graph ONNX Runtime's providers for phones take.

Such a provider is a compiler. A node that it does not take runs on the CPU, without an error, and the copies between
the two cost more time than the compiler saves. `lint` names every such node and the reason. It has more rules than ONNX
Runtime's own checker, which considers only operators and shapes (`official_check`). Both check a graph's file. ONNX
Runtime rewrites the graph before it passes it to a provider; `optimized_graph` returns the rewritten graph.
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
