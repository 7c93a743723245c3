"""The information of `inspect` about graphs."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from molkv_export import GraphOptions, export, inspect
from molkv_export.inspection import print_inspection
from molkv_runtime import BoundCall, Generator, Target


@pytest.fixture(scope="module")
def phone(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "bundle"
    export(checkpoints("molkv"), folder, profiles=["cpu", "nnapi"], graph=GraphOptions(chunk_lengths=(1, 4)))
    return folder


def test_compilers_take_static_graphs_whole_and_reject_the_dynamic_graph(phone: Path) -> None:
    found = inspect(phone)
    assert found.checks is not None
    assert [check.length for check in found.checks["nnapi"]] == [1, 4]
    for check in found.checks["nnapi"]:
        assert check.operators["Softmax"] in (4, 6)
        for target in check.targets.values():
            assert (target.nodes, target.partitions, target.first_reason) == (sum(check.operators.values()), 1, "")
            assert target.accepted == target.nodes
    [dynamic] = found.checks["cpu"]
    assert (dynamic.bytes_in, dynamic.operators["GroupQueryAttention"]) == (0, 3)
    assert dynamic.targets["coreml"].accepted < dynamic.targets["coreml"].nodes
    assert "int64" in dynamic.targets["coreml"].first_reason


def test_bytes_of_a_call_equal_the_size_of_its_buffers(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, tuple[int, ...]] = {}
    bind = BoundCall.__init__

    def measure(
        self: BoundCall,
        session: object,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, np.ndarray],
        target: Target,
    ) -> None:
        bind(self, session, inputs, outputs, target)
        length = len(inputs["inputs_embeds"])
        sizes[length] = tuple(sum(array.nbytes for array in arrays.values()) for arrays in (inputs, outputs))

    monkeypatch.setattr(BoundCall, "__init__", measure)
    Generator(phone, profile="nnapi").sequences().prefill(0, [1, 2, 3, 4, 5])
    found = inspect(phone)
    assert found.checks is not None
    assert {check.length: (check.bytes_in, check.bytes_out) for check in found.checks["nnapi"]} == sizes


def test_an_int8_window_is_shown(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    export(checkpoints("molkv"), tmp_path / "bundle", graph=GraphOptions(window_dtype="int8"))
    found = inspect(tmp_path / "bundle")
    assert found.sizes.ram_expert_window == 3 * 5 * 3 * (4 * 8 + 64 + 4)  # layers, positions, experts
    console = Console(width=200, record=True, file=StringIO())
    print_inspection(found, console)
    assert "model.onnx, dense weights float32, expert window int8" in console.export_text()


def test_inspect_prints_graphs_and_partitions(phone: Path) -> None:
    console = Console(width=200, record=True, file=StringIO())
    print_inspection(inspect(phone), console)
    text = console.export_text()
    assert "graph, profile nnapi: model.nnapi.1.onnx" in text
    assert "in 1 partition(s)" in text
    assert "host to graph in a call" in text
