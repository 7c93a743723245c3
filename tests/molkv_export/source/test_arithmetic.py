"""Float64 and rough arithmetic of the source model, and the limits derived from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from molkv_bundle import Bundle, Golden, GoldenErrors, GoldenLimits, GoldenText, Projection, read_golden
from molkv_export import GraphOptions, export
from molkv_export.families import open_checkpoint
from molkv_export.source.arithmetic import Float64, rough_arithmetic
from molkv_export.source.model import SourceModel
from molkv_runtime import selftest
from tests.molkv_export.parity.breaking import attribute


def test_float64_computes_in_float64() -> None:
    layer, x = torch.nn.Linear(5, 3, bias=False), torch.randn(2, 5)
    with torch.no_grad(), Float64():
        found = torch.softmax(layer(x).float(), -1)
    expected = torch.softmax(x.double() @ layer.weight.detach().double().T, -1)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-14)
    assert layer(x).dtype == torch.float32


def test_rough_arithmetic_ends_with_its_context(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], token_ids: np.ndarray
) -> None:
    bundle = Bundle(bundles("molkv"))
    with open_checkpoint(checkpoints("molkv")) as source:
        model = SourceModel(source, bundle)
        exact = model.logits(token_ids)
        with rough_arithmetic(model.model, bundle, 0):
            rough = model.logits(token_ids)
            again = model.logits(token_ids)
        assert np.array_equal(model.logits(token_ids), exact)
    relative = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 2.0**-24 < relative < 100 * 2.0**-24
    assert not np.array_equal(rough, again)


def test_coarser_formats_have_looser_limits(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    found = {}
    for options in (GraphOptions(), GraphOptions("int8"), GraphOptions("int4", kv_dtype="int8")):
        folder = tmp_path / f"{options.dense_dtype}-{options.kv_dtype}"
        export(checkpoints("molkv"), folder, graph=options)
        found[options.dense_dtype] = read_golden(Bundle(folder)).limits
    assert found["float32"].relative_l2 * 1000 < found["int8"].relative_l2 < found["int4"].relative_l2
    assert found["float32"].max_abs * 1000 < found["int8"].max_abs


def test_an_eps_that_is_ten_times_too_large_fails(bundles: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        norm = attribute(2, "post_attention_layernorm", "SkipSimplifiedLayerNormalization", epsilon=1e-5)
        norm(bundle, patch)
        failures = selftest(bundle).failures
    assert len(failures) == 3
    assert all("relative_l2" in failure for failure in failures)


def _text(logits: np.ndarray) -> GoldenText:
    top = np.argsort(-logits, axis=-1)[:, :16]
    kept = np.take_along_axis(logits, top, axis=-1)
    ids = np.zeros(len(logits), np.int32)
    return GoldenText(ids, top.astype(np.int32), kept, Projection(logits.shape[1]).of(logits), ids[:0])


def test_errors_match_the_specification() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 97)).astype(np.float32)
    logits[:, 5] = [9, 9, 9, 9, 3.9, 9]
    logits[:, 6] = [3, 3, 3, 3, 3.8, 3]
    text, errors = _text(logits), GoldenErrors(97, GoldenLimits(1.0, 0.1))
    found = logits.copy()
    found[2, 5] -= 0.25
    found[3, 7] = 20  # not a stored logit
    found[4, 6] = 4  # the two largest logits are so close that either may be the likeliest
    errors.add(text, 0, found[:2])
    errors.add(text, 2, found[2:])
    assert (errors.positions, errors.certain_tokens, errors.right_tokens) == (6, 5, 4)
    assert errors.max_abs_logit == pytest.approx(0.25)
    difference = Projection(97).of(found) - text.projection
    assert errors.max_abs_projection == pytest.approx(np.abs(difference).max(), rel=1e-6)
    assert errors.relative_l2 == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(text.projection), rel=1e-5)
    golden = Golden(GoldenLimits(1.0, 0.1), [text])
    assert golden.limits_beside(0.0) == golden.limits
    size = np.sqrt(np.mean(text.projection**2))
    limits = golden.limits_beside(0.5)
    assert (limits.max_abs, limits.relative_l2) == pytest.approx((1.5, 0.1 + 0.5 / size))


def test_logits_that_are_all_zero_are_compared() -> None:
    errors = GoldenErrors(97, GoldenLimits(0.0, 0.0))
    text = _text(np.zeros((2, 97), np.float32))
    errors.add(text, 0, np.zeros((1, 97), np.float32))
    assert errors.relative_l2 == 0
    errors.add(text, 1, np.ones((1, 97), np.float32))
    assert errors.relative_l2 == np.inf
