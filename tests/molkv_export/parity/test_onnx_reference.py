"""The dense graph in ONNX's evaluator computes the same as PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_bundle import Bundle
from molkv_export import GraphOptions, validate
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.runners import ONNX_REFERENCE, load_generator
from molkv_export.parity.validate import ROUNDED
from molkv_runtime import BoundCall, Target
from tests.models import CONFIGS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_runs_without_onnx_runtime(
    name: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: BoundCall) -> None:
        raise AssertionError("ONNX Runtime was used")

    monkeypatch.setattr(BoundCall, "run", refuse)
    scope = Scope(sequences=1, continuations=2, new_tokens=4)
    report = validate(
        bundles(name), checkpoints(name), scope=scope, target=Target("onnx-reference"), with_bisection=True
    )
    assert report.failures == []
    assert len([c for c in report.comparisons if c.reference == ROUNDED]) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"dense_dtype": "int8"},
        {"dense_dtype": "int4"},
        {"kv_dtype": "int8"},
        {"window_dtype": "int8"},
    ],
)
def test_quantized_kernels_match_the_definitions_of_their_operators(
    options: dict[str, Any], bundles: Callable[..., Path]
) -> None:
    bundle = Bundle(bundles("stdlib-mini", "float16", graph=GraphOptions(**options)))
    texts = np.random.default_rng(0).integers(0, 4096, (4, 40))
    found = []
    for provider in ("cpu", ONNX_REFERENCE):
        generator = load_generator(bundle, Target(provider))
        generator.sequences(1, 128, prefill_chunk=32).prefill(0, texts[0])  # the first chunk has no logits
        for ids in texts:
            state = generator.sequences(1, 128)
            found.append(state.prefill(0, ids, all_logits=True))
            found += [state.decode([token]).copy() for token in (5, 6, 7)]
    ours, theirs = np.split(np.concatenate(found), 2)
    worst = np.abs(ours - theirs).max(axis=-1)
    # A number in the middle between two codes may become either. Then this and later positions of the text differ by a
    # step. This may happen early in a text, so there are several texts.
    assert np.median(worst) < 1e-3
    assert worst.max() < 0.5
