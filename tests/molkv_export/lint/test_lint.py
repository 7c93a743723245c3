"""Graphs that the exporter builds for phones, before and after ONNX Runtime's optimizer; partitions."""

from __future__ import annotations

import importlib.resources
import random
from pathlib import Path

import onnx
import pytest

from molkv_bundle import MissingExtraError, ProviderError
from molkv_export.lint import OfficialResult, lint, official_check, operators, optimized_graph
from tests.models import CONFIGS
from tests.molkv_export.lint.graphs import COMPILERS, MODULES, Profile, small_model, static_model

PRODUCTS_STAY_PRODUCTS = ["MatMulAddFusion"]
INPUT = "(float[2] x) => (float[2] y) "


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize("profile", MODULES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiler_accepts_the_whole_graph_of_its_profile(
    name: str, profile: Profile, length: int, tmp_path: Path
) -> None:
    model = static_model(name, profile, length)
    onnx.save(model, tmp_path / "model.onnx")
    for graph in (model, optimized_graph(tmp_path / "model.onnx", PRODUCTS_STAY_PRODUCTS)):
        result = lint(graph, COMPILERS[profile])
        assert result.findings == []
        assert result.partitions == 1
        assert result.accepted == result.nodes == sum(result.operators.values()) > 100


@pytest.mark.parametrize("profile", MODULES)
def test_a_product_fused_into_gemm_is_found(profile: Profile, tmp_path: Path) -> None:
    onnx.save(static_model("molkv", profile, 1), tmp_path / "model.onnx")
    result = lint(optimized_graph(tmp_path / "model.onnx", []), COMPILERS[profile])
    assert {finding.operator for finding in result.findings} == {"Gemm"}
    assert result.partitions > 1


def test_float16_stays_float16_and_weights_are_not_read(tmp_path: Path) -> None:
    model = static_model("molkv", "coreml-half", 1)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=2048)
    (tmp_path / "weights").unlink()
    optimized = optimized_graph(path, PRODUCTS_STAY_PRODUCTS)
    unread = onnx.load(path, load_external_data=False)
    assert lint(optimized, "coreml").operators == lint(unread, "coreml").operators
    for kind in ("input", "output"):
        assert list(getattr(optimized.graph, kind)) == list(getattr(unread.graph, kind))
    assert {tensor.data_type for tensor in optimized.graph.initializer} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }


def test_a_graph_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    onnx.save(small_model("(float[2] x) => (float[2] y) { y = com.microsoft.NoSuch(x) }"), tmp_path / "model.onnx")
    with pytest.raises(ProviderError, match=r"model\.onnx: ONNX Runtime refuses the graph: .*NoSuch"):
        optimized_graph(tmp_path / "model.onnx", [])


@pytest.mark.parametrize("profile", MODULES)
def test_the_official_checker_agrees(profile: Profile, tmp_path: Path) -> None:
    model = static_model("mole", profile, 1)
    onnx.save(model, tmp_path / "model.onnx")
    nodes = lint(model, COMPILERS[profile]).nodes
    assert official_check(tmp_path / "model.onnx", COMPILERS[profile]) == OfficialResult(nodes, nodes, 1, "YES")


def test_the_lint_finds_faults_that_the_official_checker_misses(tmp_path: Path) -> None:
    model = small_model("(float[3, 4] x, float[4, 5] w) => (float[3, 5] y) { a = MatMul(x, w)  y = Sqrt(a) }")
    onnx.save(model, tmp_path / "model.onnx")
    assert official_check(tmp_path / "model.onnx", "nnapi").verdict == "YES"
    assert lint(model, "nnapi").findings


@pytest.mark.parametrize(
    ("nodes", "partitions"),
    [
        ("a = Sqrt(x)  b = Neg(a)  y = Sqrt(b)", 2),
        ("a = Sqrt(x)  y = Sqrt(a)", 1),
        ("y = Neg(x)", 0),
        ("a = Neg(x)  b = Sqrt(x)  y = Add(a, b)", 1),  # the refused node does not depend on the subgraph
        ("a = Sqrt(x)  b = Neg(a)  y = Add(a, b)", 2),  # one subgraph would depend on itself
        ("a = Sqrt(x)  b = Neg(a)  c = Neg(b)  y = Sqrt(c)", 2),
        ("a = Sqrt(x)  b = Neg(a)  c = Sqrt(b)  d = Neg(c)  e = Sqrt(x)  f = Add(d, e)  y = Sqrt(f)", 3),
    ],
)
def test_a_refused_node_divides_a_partition_into_two(nodes: str, partitions: int) -> None:
    result = lint(small_model(f"{INPUT} {{ {nodes} }}"), "coreml")
    assert result.partitions == partitions
    assert result.accepted == nodes.count("Sqrt") + nodes.count("Add")


@pytest.mark.parametrize("seed", range(15))
def test_the_official_checker_counts_the_same_partitions(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    values, nodes = ["x"], []
    for index in range(25):
        operator = choose.choice(["Add", "Add", "Mod<fmod = 1>"])  # CoreML does not support Mod
        nodes.append(f"v{index} = {operator}({choose.choice(values[-4:])}, {choose.choice(values)})")
        values.append(f"v{index}")
    model = small_model(f"{INPUT} {{ {'  '.join(nodes)}  y = Add({', '.join(values[-2:])}) }}")
    onnx.save(model, tmp_path / "model.onnx")
    ours, official = lint(model, "coreml"), official_check(tmp_path / "model.onnx", "coreml")
    assert (ours.nodes, ours.accepted, ours.partitions) == (official.nodes, official.accepted, official.partitions)


def test_an_onnx_runtime_without_tables_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators.supported_operators.cache_clear()
    monkeypatch.setattr(importlib.resources, "files", lambda _package: tmp_path)
    with pytest.raises(MissingExtraError, match=r"has no nnapi_supported_ops\.md.*install onnxruntime"):
        lint(small_model(f"{INPUT} {{ y = Sqrt(x) }}"), "nnapi")
