"""ONNX Runtime's own checker, and its tables of the operators that each compiler accepts."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import onnx_ir as ir
from onnxruntime.tools.mobile_helpers import usability_checker

from molkv_bundle import MissingExtraError
from molkv_export.lint.rules import infer_shapes, lift_constants

Compiler = Literal["coreml", "nnapi"]

TABLES: dict[Compiler, str] = {
    "coreml": "coreml_supported_mlprogram_ops.md",
    "nnapi": "nnapi_supported_ops.md",
}

# Operators that a compiler accepts but we refuse, with the reason.
REFUSED: dict[Compiler, dict[str, str]] = {
    "coreml": {"Reciprocal": "CoreML computes 1 / (x + 0.0001), expected Div"},
    "nnapi": {},
}

_PACKAGE = "onnxruntime.tools.mobile_helpers"
_ROW = re.compile(r"^\|ai\.onnx[:.](\w+)\|", re.MULTILINE)  # one row of ONNX Runtime's tables has a dot by mistake


@cache
def supported_operators(compiler: Compiler) -> frozenset[str]:
    """Return the operators of the default domain that a compiler accepts, from ONNX Runtime's table.

    Raises:
        MissingExtraError: The installed ONNX Runtime does not have the table.
    """
    name = TABLES[compiler]
    try:
        text = (resources.files(_PACKAGE) / name).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingExtraError(
            f"{_PACKAGE} has no {name}, the table of {compiler}'s operators; install onnxruntime 1.24 or later"
        ) from error
    return frozenset(_ROW.findall(text))


class OfficialResult(msgspec.Struct, frozen=True):
    """The result of ONNX Runtime's checker for a graph."""

    nodes: int
    accepted: int
    partitions: int
    verdict: str  # whether the checker recommends the provider: YES, MAYBE or NO


def official_check(path: Path, compiler: Compiler) -> OfficialResult:
    """Return the result of `python -m onnxruntime.tools.check_onnx_model_mobile_usability --skip_optimize`.

    Weights in another file are not read.

    Raises:
        onnx.shape_inference.InferenceError: The graph is not valid ONNX.
    """
    model = onnx.load(path, load_external_data=False)
    shaped = infer_shapes(ir.to_proto(lift_constants(model)))
    if compiler == "nnapi":
        info = usability_checker.check_nnapi_partitions(shaped, True)
    else:
        info = usability_checker.check_coreml_partitions(shaped, True, TABLES[compiler])
    return OfficialResult(
        nodes=info.num_nodes,
        accepted=info.num_supported_nodes,
        partitions=info.num_partitions,
        verdict=info.suitability().name,
    )
