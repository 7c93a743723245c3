"""A source model that loads its weights when they are used computes what one with all weights in RAM computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch import Tensor

from molkv_bundle import Bundle
from molkv_export import GraphOptions, export
from molkv_export.families import open_checkpoint
from molkv_export.source import streamed
from molkv_export.source.arithmetic import rough_arithmetic
from molkv_export.source.model import SourceModel
from molkv_runtime import ExpertStore

TEXTS = [np.arange(20) % 50, np.arange(7)]


class Models(NamedTuple):
    """A source model with all weights in RAM, and one that loads its matrices; both round as a bundle does."""

    kept: SourceModel
    streamed: SourceModel
    bundle: Bundle
    store: ExpertStore


@pytest.fixture(params=["float32", "int8", "int4"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Return the dtype of the bundle's weights."""
    return str(request.param)


@pytest.fixture(params=["mole", "molkv"])
def models(
    request: pytest.FixtureRequest,
    dtype: str,
    bundles: Callable[..., Path],
    checkpoints: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Models]:
    """Export a small model, and make its source models."""
    bundle = Bundle(bundles(request.param, graph=GraphOptions(dense_dtype=dtype, block_size=16)))
    with open_checkpoint(checkpoints(request.param)) as source, ExpertStore(bundle) as store:
        kept = SourceModel(source, bundle)
        monkeypatch.setattr(streamed, "KEPT_BYTES", 0)
        yield Models(kept, SourceModel(source, bundle), bundle, store)


def _streamed_names(model: SourceModel) -> list[str]:
    return [name for name, shape in model.dense_shapes.items() if len(shape) == 2 and name != "lm_head.weight"]


def _on_meta(model: SourceModel) -> list[str]:
    return [name for name in model.dense_shapes if model.model.get_parameter(name).is_meta]


def _assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_streamed_weights_give_the_same_logits(models: Models) -> None:
    kept, model, store = models.kept, models.streamed, models.store
    for in_float64 in (False, True):
        assert _on_meta(model) == _streamed_names(model)
        expected = kept.hidden(TEXTS, store, in_float64=in_float64)
        _assert_equal(model.hidden(TEXTS, store, in_float64=in_float64), expected)
    for name in model.dense_shapes:
        np.testing.assert_array_equal(model.dense_weight(name).numpy(), kept.dense_weight(name).numpy())
    assert _on_meta(kept) == []


@pytest.mark.parametrize("draw", [0, 2])
def test_random_errors_are_the_same_with_streamed_weights(models: Models, draw: int) -> None:
    exact = models.kept.hidden(TEXTS, models.store)
    found = []
    for model in (models.kept, models.streamed):
        with rough_arithmetic(model.model, models.bundle, draw):
            found.append(model.hidden(TEXTS, models.store))
    _assert_equal(found[1], found[0])
    assert not np.array_equal(found[0][0].numpy(), exact[0].numpy())
    _assert_equal(models.streamed.hidden(TEXTS, models.store), exact)  # no hook is left


@pytest.mark.parametrize("dtype", ["int8"])
@pytest.mark.parametrize("in_float64", [False, True])
@pytest.mark.parametrize("is_read", [False, True], ids=["not read", "of another shape"])
def test_a_failing_load_leaves_no_weight_in_ram(
    models: Models, in_float64: bool, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = models.streamed, models.store
    expected = model.hidden(TEXTS, store, in_float64=in_float64)
    names = _streamed_names(model)
    for failing in (names[0], names[-1]):

        def read(name: str, failing: str = failing) -> Tensor:
            weight = SourceModel.exact_weight(model, name)
            if name == failing and not is_read:
                raise OSError("the folder is gone")
            return weight[:, 1:] if name == failing else weight

        with monkeypatch.context() as patch:
            patch.setattr(model, "exact_weight", read)
            with pytest.raises((OSError, RuntimeError), match=r"the folder is gone|shape"):
                model.hidden(TEXTS, store, in_float64=in_float64)
        assert _on_meta(model) == names
    _assert_equal(model.hidden(TEXTS, store, in_float64=in_float64), expected)


def test_the_largest_weight_counts_twice_while_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"lm_head.weight": (100, 8), "model.norm.weight": (8,), "a.weight": (8, 8), "b.weight": (8, 16)}
    head, norm, a, b = 3200, 32, 256, 512
    assert streamed.source_bytes(shapes) == 2 * head + norm + a + b  # all are kept
    monkeypatch.setattr(streamed, "KEPT_BYTES", head + norm + a + b - 1)
    assert streamed.source_bytes(shapes) == 2 * head + norm
    shapes["b.weight"] = (8, 100)
    assert streamed.source_bytes(shapes) == head + norm + 2 * 3200
    shapes["b.weight"] = (8, 51)
    assert streamed.source_bytes(shapes) == head + norm + 2 * 1632


def test_texts_that_are_computed_together_do_not_change_each_other(checkpoints: Callable[[str], Path]) -> None:
    with open_checkpoint(checkpoints("mole")) as source:
        model = SourceModel(source)
        together = model.hidden(TEXTS, in_float64=True)
        for ids, hidden in zip(TEXTS, together, strict=True):
            [alone] = model.hidden([ids], in_float64=True)
            assert hidden.shape == alone.shape
            np.testing.assert_allclose(hidden.numpy(), alone.numpy(), rtol=1e-9, atol=1e-9)


def test_golden_vectors_are_the_same_with_streamed_weights(
    checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streaming computes the short texts together, and the errors of its limits are drawn in another order."""
    export(checkpoints("molkv"), tmp_path / "kept")
    monkeypatch.setattr(streamed, "KEPT_BYTES", 0)
    export(checkpoints("molkv"), tmp_path / "streamed")
    kept, found = (load_file(tmp_path / name / "golden.safetensors") for name in ("kept", "streamed"))
    assert kept.keys() == found.keys()
    for name, expected in kept.items():
        if name.endswith(".greedy_ids"):  # a text ends before a token that the limits do not decide
            count = min(len(expected), len(found[name]))
            assert np.array_equal(found[name][:count], expected[:count])
        elif name.startswith("texts."):
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    assert sum(len(found[name]) for name in found if name.endswith(".greedy_ids")) > 16
