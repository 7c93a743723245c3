"""What ONNX Runtime's providers for phones take of a static graph, found out without a phone.

Such a provider is a compiler. It leaves a node that it does not take to the CPU, without an error, and the copies that
this costs are larger than what the compiler gains. `lint` says for every such node why it is not taken. It knows more
rules than ONNX Runtime's own checker, which looks at operators and shapes only (`official_check`). Both look at a file;
a provider is given that file after ONNX Runtime has rewritten it (`optimized_graph`).
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
