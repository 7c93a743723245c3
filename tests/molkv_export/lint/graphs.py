"""Graphs to lint: small graphs in ONNX's text format, and graphs of the exporter."""

from __future__ import annotations

import re
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from molkv_export.families import FAMILIES
from molkv_export.graph.static.modules import HalfModules, NnapiModules, StaticModules
from molkv_export.lint import Compiler, LintResult, lint
from tests.models import CONFIGS

Profile = Literal["coreml", "coreml-half", "nnapi"]
MODULES = {"coreml": StaticModules, "coreml-half": HalfModules, "nnapi": NnapiModules}
COMPILERS: dict[Profile, Compiler] = {"coreml": "coreml", "coreml-half": "coreml", "nnapi": "nnapi"}

Constant = npt.NDArray[np.generic] | TensorProto


def small_model(text: str, **constants: Constant) -> onnx.ModelProto:
    """Parse `(inputs) => (outputs) {nodes}`."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22, "com.microsoft": 1]> small {text}')
    for name, value in constants.items():
        tensor = TensorProto()
        tensor.CopyFrom(value if isinstance(value, TensorProto) else numpy_helper.from_array(value))
        tensor.name = name
        model.graph.initializer.append(tensor)
    return model


def axes(*numbers: int) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64)


def zeros(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def absent(*shape: int) -> TensorProto:
    """Make a float32 tensor whose data file does not exist."""
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="not-there")
    return tensor


def static_model(name: str, profile: Profile, length: int) -> onnx.ModelProto:
    """Build a graph of the exporter with all weights zero."""
    config = CONFIGS[name]
    config = msgspec.structs.replace(config, max_position_embeddings=40, expert_window=min(config.expert_window, 40))
    kv_dtype: Literal["float16", "float32"] = "float16" if profile == "coreml-half" else "float32"
    build = FAMILIES[config.model_type].static_graph
    assert build is not None
    model = build(config, MODULES[profile], kv_dtype, length).model
    for value in model.graph.initializers.values():
        if value.const_value is None:
            assert value.shape is not None
            assert value.dtype is not None
            value.const_value = ir.tensor(np.zeros(value.shape.numpy(), value.dtype.numpy()), name=value.name)
    return ir.to_proto(model)


def broken(compiler: Compiler, text: str, *reasons: str, **constants: Constant) -> LintResult:
    """Lint a graph and check that it has exactly these findings."""
    result = lint(small_model(text, **constants), compiler)
    found = [finding.reason for finding in result.findings]
    assert [reason for reason in reasons if not any(re.search(reason, text) for text in found)] == []
    assert [text for text in found if not any(re.search(reason, text) for reason in reasons)] == []
    assert result.accepted < result.nodes
    return result


def clean(compiler: Compiler, text: str, **constants: Constant) -> None:
    assert lint(small_model(text, **constants), compiler).findings == []
