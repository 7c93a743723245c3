"""Weights are copied from the checkpoint into the graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import molkv_export.exporter as exporting
from molkv_bundle import DenseDtype, GraphInfo
from molkv_export.checkpoints import Checkpoint
from molkv_export.graph.build import GraphPlan
from molkv_export.graph.files import save_graphs
from molkv_export.profiles import DTYPES, GraphOptions


@pytest.mark.parametrize(("profile", "dtype"), [(profile, dtype) for profile in DTYPES for dtype in DTYPES[profile]])
def test_every_weight_is_read_once_for_all_tensors_and_graphs(
    profile: str, dtype: DenseDtype, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Counter[str] = Counter()
    weights: dict[str, int] = {}

    def save(plan: GraphPlan, source: Checkpoint, *arguments: Any, **options: Any) -> GraphInfo:
        """Count the rows that are read while graphs are saved."""
        original = source.tensor

        def tensor(name: str, start: int = 0, stop: int | None = None) -> Any:
            read = original(name, start, stop)
            if read.ndim == 2:
                rows[name] += len(read)
                weights[name] = source.shape(name)[0]
            return read

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "tensor", tensor)
            return save_graphs(plan, source, *arguments, **options)

    monkeypatch.setattr(exporting, "save_graphs", save)
    lengths = None if profile == "cpu" else (1, 4, 8)
    graph = GraphOptions(dtype, chunk_lengths=lengths)
    exporting.export(checkpoints("molkv"), tmp_path / "bundle", profiles=[profile], graph=graph)
    assert len(weights) > 10
    assert rows == weights
