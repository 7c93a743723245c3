"""A source model that loads its weights when they are used computes what one with all weights in RAM computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from molkv_bundle import Bundle
from molkv_export import GraphOptions
from molkv_export.families import open_checkpoint
from molkv_export.source import streamed
from molkv_export.source.model import SourceModel
from molkv_runtime import ExpertStore

TEXTS = [np.arange(20) % 50, np.arange(7)]


@pytest.fixture(params=["float32", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> Bundle:
    """Export a small model."""
    return Bundle(bundles("mole", graph=GraphOptions(dense_dtype=request.param, block_size=16)))


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """Return the checkpoint of the small model."""
    return checkpoints("mole")


def test_streamed_weights_give_the_same_logits(
    bundle: Bundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(checkpoint) as source, ExpertStore(bundle) as store:
        kept = SourceModel(source, bundle)
        monkeypatch.setattr(streamed, "KEPT_BYTES", 0)
        model = SourceModel(source, bundle)
        shapes = model.dense_shapes
        assert [model.model.get_parameter(name).is_meta for name in shapes] == [
            len(shape) == 2 and name != "lm_head.weight" for name, shape in shapes.items()
        ]
        for in_float64 in (False, True):
            expected = kept.hidden(TEXTS, store, in_float64=in_float64)
            found = model.hidden(TEXTS, store, in_float64=in_float64)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        for name in shapes:
            np.testing.assert_array_equal(model.dense_weight(name).numpy(), kept.dense_weight(name).numpy())
        assert streamed.source_bytes(shapes) < streamed.weight_bytes(shapes.values())


def test_texts_that_are_computed_together_do_not_change_each_other(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        model = SourceModel(source)
        together = model.hidden(TEXTS, in_float64=True)
        for ids, hidden in zip(TEXTS, together, strict=True):
            [alone] = model.hidden([ids], in_float64=True)
            assert hidden.shape == alone.shape
            np.testing.assert_allclose(hidden.numpy(), alone.numpy(), rtol=1e-9, atol=1e-9)
