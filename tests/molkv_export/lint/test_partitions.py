"""How many subgraphs a provider will compile."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest

from molkv_bundle import MissingExtraError
from molkv_export.lint import lint, official_check, tables
from tests.molkv_export.lint.graphs import small_model

INPUT = "(float[2] x) => (float[2] y) "


@pytest.mark.parametrize(
    ("nodes", "partitions"),
    [
        ("a = Sqrt(x)  b = Neg(a)  y = Sqrt(b)", 2),
        ("a = Sqrt(x)  y = Sqrt(a)", 1),
        ("y = Neg(x)", 0),
        ("a = Neg(x)  b = Sqrt(x)  y = Add(a, b)", 1),  # the refused node needs nothing of the subgraph
        ("a = Sqrt(x)  b = Neg(a)  y = Add(a, b)", 2),  # one subgraph would need itself
        ("a = Sqrt(x)  b = Neg(a)  c = Neg(b)  y = Sqrt(c)", 2),
        ("a = Sqrt(x)  b = Neg(a)  c = Sqrt(b)  d = Neg(c)  e = Sqrt(x)  f = Add(d, e)  y = Sqrt(f)", 3),
    ],
)
def test_a_refused_node_in_between_makes_two(nodes: str, partitions: int) -> None:
    result = lint(small_model(f"{INPUT} {{ {nodes} }}"), "coreml")
    assert result.partitions == partitions
    assert result.accepted == nodes.count("Sqrt") + nodes.count("Add")


@pytest.mark.parametrize("seed", range(15))
def test_the_official_checker_counts_the_same(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    values, nodes = ["x"], []
    for index in range(25):
        operator = choose.choice(["Add", "Add", "Mod<fmod = 1>"])  # CoreML does not take Mod
        nodes.append(f"v{index} = {operator}({choose.choice(values[-4:])}, {choose.choice(values)})")
        values.append(f"v{index}")
    model = small_model(f"{INPUT} {{ {'  '.join(nodes)}  y = Add({', '.join(values[-2:])}) }}")
    onnx.save(model, tmp_path / "model.onnx")
    ours, official = lint(model, "coreml"), official_check(tmp_path / "model.onnx", "coreml")
    assert (ours.nodes, ours.accepted, ours.partitions) == (official.nodes, official.accepted, official.partitions)


def test_an_onnx_runtime_without_tables_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tables.supported_operators.cache_clear()
    monkeypatch.setattr(tables, "_PACKAGE", "onnxruntime.capi")
    with pytest.raises(MissingExtraError, match=r"has no nnapi_supported_ops\.md.*install onnxruntime"):
        lint(small_model(f"{INPUT} {{ y = Sqrt(x) }}"), "nnapi")
