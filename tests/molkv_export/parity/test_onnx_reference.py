"""The dense graph in ONNX's own evaluator computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_export.parity.texts import Scope
from molkv_export.parity.validate import ROUNDED, validate
from molkv_runtime.dense_graph import BoundCall
from tests.conftest import CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_runs_without_onnx_runtime(
    name: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: BoundCall) -> None:
        raise AssertionError("ONNX Runtime was used")

    monkeypatch.setattr(BoundCall, "run", refuse)
    scope = Scope(sequences=1, continuations=2, new_tokens=4)
    report = validate(bundles(name), checkpoints(name), scope=scope, provider="onnx-reference", with_bisection=True)
    assert report.failures == []
    assert len([c for c in report.comparisons if c.reference == ROUNDED]) == 6
