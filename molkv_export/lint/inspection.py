"""What every target takes of a graph, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnx

from molkv_bundle import BundleError, MolkvError, one_line
from molkv_export.inspection import Acceptance
from molkv_export.lint.lint import lint
from molkv_export.lint.tables import Target


def acceptance(path: Path) -> tuple[dict[str, int], dict[str, Acceptance]]:
    """Count the nodes of a graph by operator, and say what each target takes.

    Raises:
        BundleError: It is not a graph that ONNX's package can read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        results = [lint(model, target) for target in get_args(Target)]
    except MolkvError:
        raise
    except Exception as error:  # a stranger's graph can break the package in many ways
        raise BundleError(f"{path}: ONNX's package cannot read it: {one_line(error)}") from error
    targets: dict[str, Acceptance] = {}
    for found in results:
        first = next((f"{finding.node} ({finding.operator}): {finding.reason}" for finding in found.findings), "")
        targets[found.target] = Acceptance(found.nodes, found.accepted, found.partitions, first)
    return results[0].operators, targets
