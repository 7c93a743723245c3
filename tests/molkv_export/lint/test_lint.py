"""The graphs that the exporter builds for phones, as they are and as a provider sees them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from molkv_bundle import ProviderError
from molkv_export.lint import OfficialResult, lint, official_check, what_is_seen
from tests.conftest import CONFIGS
from tests.molkv_export.lint.graphs import MODULES, TARGETS, Profile, small_model, static_model

PRODUCTS_STAY_PRODUCTS = ["MatMulAddFusion"]


@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize("profile", MODULES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_target_takes_its_graph_whole(name: str, profile: Profile, length: int, tmp_path: Path) -> None:
    model = static_model(name, profile, length)
    onnx.save(model, tmp_path / "model.onnx")
    for seen in (model, what_is_seen(tmp_path / "model.onnx", PRODUCTS_STAY_PRODUCTS)):
        result = lint(seen, TARGETS[profile])
        assert result.findings == []
        assert result.partitions == 1
        assert result.accepted == result.nodes == sum(result.operators.values()) > 100


@pytest.mark.parametrize("profile", MODULES)
def test_a_product_that_became_a_layer_is_seen(profile: Profile, tmp_path: Path) -> None:
    onnx.save(static_model("molkv", profile, 1), tmp_path / "model.onnx")
    result = lint(what_is_seen(tmp_path / "model.onnx", []), TARGETS[profile])
    assert {finding.operator for finding in result.findings} == {"Gemm"}
    assert result.partitions > 1


def test_halves_stay_halves_and_weights_are_not_read(tmp_path: Path) -> None:
    model = static_model("molkv", "coreml-half", 1)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=2048)
    (tmp_path / "weights").unlink()
    seen = what_is_seen(path, PRODUCTS_STAY_PRODUCTS)
    unread = onnx.load(path, load_external_data=False)
    assert lint(seen, "coreml").operators == lint(unread, "coreml").operators
    for kind in ("input", "output"):
        assert list(getattr(seen.graph, kind)) == list(getattr(unread.graph, kind))
    assert {tensor.data_type for tensor in seen.graph.initializer} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }


def test_a_graph_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    onnx.save(small_model("(float[2] x) => (float[2] y) { y = com.microsoft.NoSuch(x) }"), tmp_path / "model.onnx")
    with pytest.raises(ProviderError, match=r"model\.onnx: ONNX Runtime refuses the graph: .*NoSuch"):
        what_is_seen(tmp_path / "model.onnx", [])


@pytest.mark.parametrize("profile", MODULES)
def test_the_official_checker_agrees(profile: Profile, tmp_path: Path) -> None:
    model = static_model("mole", profile, 1)
    onnx.save(model, tmp_path / "model.onnx")
    nodes = lint(model, TARGETS[profile]).nodes
    assert official_check(tmp_path / "model.onnx", TARGETS[profile]) == OfficialResult(nodes, nodes, 1, "YES")


def test_the_official_checker_misses_what_the_lint_finds(tmp_path: Path) -> None:
    model = small_model("(float[3, 4] x, float[4, 5] w) => (float[3, 5] y) { a = MatMul(x, w)  y = Sqrt(a) }")
    onnx.save(model, tmp_path / "model.onnx")
    assert official_check(tmp_path / "model.onnx", "nnapi").verdict == "YES"
    assert not lint(model, "nnapi").clean
