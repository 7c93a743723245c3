"""ONNX Runtime's own check, for comparison."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir
from onnxruntime.tools.mobile_helpers import usability_checker

from molkv_export.lint.tables import TABLES, Target
from molkv_export.lint.values import infer_shapes, lift_constants


class OfficialResult(msgspec.Struct, frozen=True):
    """What ONNX Runtime's checker says of a graph."""

    nodes: int
    accepted: int
    partitions: int
    verdict: str  # whether the provider is worth it: YES, MAYBE or NO


def official_check(path: Path, target: Target) -> OfficialResult:
    """Ask what `python -m onnxruntime.tools.check_onnx_model_mobile_usability --skip_optimize` would say.

    Weights in another file are not read.

    Raises:
        onnx.shape_inference.InferenceError: The graph contradicts ONNX.
    """
    model = onnx.load(path, load_external_data=False)
    shaped = infer_shapes(ir.to_proto(lift_constants(model)))
    if target == "nnapi":
        info = usability_checker.check_nnapi_partitions(shaped, True)
    else:
        info = usability_checker.check_coreml_partitions(shaped, True, TABLES[target])
    return OfficialResult(
        nodes=info.num_nodes,
        accepted=info.num_supported_nodes,
        partitions=info.num_partitions,
        verdict=info.suitability().name,
    )
