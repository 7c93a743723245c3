"""The operators of each target, from the tables that ONNX Runtime ships."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal

from molkv_bundle import MissingExtraError

Target = Literal["coreml", "nnapi"]

TABLES: dict[Target, str] = {
    "coreml": "coreml_supported_mlprogram_ops.md",
    "nnapi": "nnapi_supported_ops.md",
}

# Operators that a provider takes and that we do not want it to take, and why.
REFUSED: dict[Target, dict[str, str]] = {
    "coreml": {"Reciprocal": "CoreML computes 1 / (x + 0.0001), expected Div"},
    "nnapi": {},
}

_PACKAGE = "onnxruntime.tools.mobile_helpers"
_ROW = re.compile(r"^\|ai\.onnx[:.](\w+)\|", re.MULTILINE)  # one row of a table has a dot by mistake


@cache
def supported_operators(target: Target) -> frozenset[str]:
    """Read which operators of the default domain a target takes.

    Raises:
        MissingExtraError: The installed ONNX Runtime does not have the table.
    """
    name = TABLES[target]
    try:
        text = (resources.files(_PACKAGE) / name).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingExtraError(
            f"{_PACKAGE} has no {name}, the table of operators that {target} takes; install onnxruntime 1.24 or later"
        ) from error
    return frozenset(_ROW.findall(text))
