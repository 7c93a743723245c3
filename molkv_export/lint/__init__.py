"""What ONNX Runtime's providers for phones take of a static graph, found out without a phone.

A provider that does not take a node leaves it to the CPU without an error, and the copies that this costs are larger
than what the provider gains. `lint` says for every such node why; it knows more rules than ONNX Runtime's own checker,
which looks at operators and shapes only (`official_check`). Both look at a file; what a provider is given is that
file after ONNX Runtime has rewritten it (`what_is_seen`).
"""

from molkv_export.lint.lint import lint
from molkv_export.lint.official import OfficialResult, official_check
from molkv_export.lint.result import Finding, LintResult
from molkv_export.lint.seen import what_is_seen
from molkv_export.lint.tables import Target

__all__ = ["Finding", "LintResult", "OfficialResult", "Target", "lint", "official_check", "what_is_seen"]
