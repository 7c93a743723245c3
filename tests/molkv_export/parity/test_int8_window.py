"""A bundle with an int8 window computes the same as its reference, which rounds values and probabilities, too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_bundle import BundleError, Records, RequestError
from molkv_export import GraphOptions, Report, add_profile, export, validate
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.validate import ROUNDED, TRAINED
from molkv_export.profiles import plan_graphs
from molkv_runtime import Generator, selftest
from molkv_runtime.window import ExpertWindow
from tests.manifests import edit_manifest
from tests.models import CONFIGS, STDLIB_MINI
from tests.recording import record

pytestmark = pytest.mark.slow

INT8 = GraphOptions(window_dtype="int8")
SMALL = Scope(sequences=2, continuations=3, new_tokens=20)
WINDOWED = [name for name, config in CONFIGS.items() if config.window_dtypes == ("float32", "int8")]


@pytest.mark.parametrize(
    ("name", "profile", "dense", "store", "asked", "expected"),
    [
        ("molkv", "cpu", "int8", "int8", None, "int8"),
        ("molkv", "cpu", "int4", "int8", None, "int8"),
        ("molkv", "cpu", "int8", "int8", "float32", "float32"),
        ("molkv", "cpu", "float32", "int8", None, "float32"),
        ("molkv", "cpu", "float16", "int8", None, "float32"),
        ("molkv", "cpu", "float32", "int8", "int8", "int8"),
        ("molkv", "cpu", "int8", "float16", None, "float32"),
        ("molkv", "cpu", "int8", "int4", None, "float32"),
        ("molkv", "coreml", "float32", "int8", None, "float32"),
        ("mole", "cpu", "int8", "int8", None, "float32"),
        ("dense", "cpu", "int8", "int8", None, "float32"),
    ],
)
def test_the_default_is_int8_only_for_an_int8_store_and_rounded_weights(
    name: str, profile: str, dense: Any, store: Any, asked: Any, expected: str
) -> None:
    [plan] = plan_graphs(CONFIGS[name], [profile], GraphOptions(dense, window_dtype=asked), store)
    assert plan.dense.window_dtype == expected


def test_an_added_profile_gets_the_default_of_its_store(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint, bundle = checkpoints("molkv"), tmp_path / "bundle"
    export(checkpoint, bundle, profiles=["coreml"], experts_dtype="int8")
    added = add_profile(checkpoint, bundle, "cpu", graph=GraphOptions("int8"))
    assert {name: graph.window_dtype for name, graph in added.graphs.items()} == {"coreml": "float32", "cpu": "int8"}


@pytest.fixture
def trained(bundles: Callable[..., Path]) -> Path:
    return bundles("stdlib-mini", "int8", graph=INT8)


def _worst(report: Report) -> float:
    return max(c.metrics.max_abs for c in report.comparisons if c.reference == ROUNDED)


@pytest.mark.parametrize(
    ("name", "store"),
    [*((name, "int8") for name in WINDOWED), *(("molkv", store) for store in ("float32", "float16", "int4"))],
)
def test_every_phase_computes_what_the_reference_does(
    name: str, store: Any, checkpoints: Callable[[str], Path], bundles: Callable[..., Path]
) -> None:
    bundle = bundles(name, store, graph=INT8)
    report = validate(bundle, checkpoints(name), scope=SMALL, with_bisection=True)
    assert report.failures == []
    assert selftest(bundle).failures == []
    # The difference is smaller than the cost of rounding. It comes from probabilities in the middle between two codes.
    rounding = next(c.metrics.max_abs for c in report.comparisons if c.reference == TRAINED)
    assert _worst(report) < rounding / 5


@pytest.mark.parametrize("dense", ["float32", "int8", "int4"])
def test_the_trained_model_passes_every_gate(dense: Any, bundles: Callable[..., Path]) -> None:
    bundle = bundles("stdlib-mini", "int8", graph=GraphOptions(dense, window_dtype="int8"))
    report = validate(bundle, STDLIB_MINI, scope=Scope(1, 2, 64), with_bisection=True)
    assert report.failures == []
    assert report.quality.metrics.kl_mean < report.gate.kl_mean / 2
    found = selftest(bundle)
    assert found.failures == []
    assert found.greedy_tokens > 0 or dense != "float32"


def test_values_of_an_int8_store_enter_the_window_unchanged(trained: Path) -> None:
    generator = Generator(trained)
    ids = np.array([7, 7, 300, 41])
    layers = generator.store.gather(ids)["layers"]
    recorder = record(generator)
    state = generator.sequences()
    state.prefill(0, ids[:3])
    state.decode(ids[3:])
    inputs = recorder.bound[0].inputs
    for layer in range(4):
        codes, scale = (inputs[f"{name}.{layer}"][0] for name in ("expert_value", "expert_value_scale"))
        assert (codes.dtype, scale.dtype) == (np.int8, np.float32)
        assert np.array_equal(codes.reshape(32, 4, -1)[:4], layers["value"][:, layer])
        assert np.array_equal(scale.reshape(32, 4, 1)[:4], layers["scale"][:, layer])


def _broken(records: Records, what: str) -> Records:
    """Break layer 1 of records [n] of an int8 store, whose codes and scales enter an int8 window as they are."""
    changed = records.copy()
    codes, scales = (changed["layers"][name][:, 1] for name in ("value", "scale"))  # [n, N, d] and [n, N, 1]
    match what:
        case "a scale is off":
            scales *= np.float32(1.2)
        case "scales of the neighbour":
            scales[...] = np.roll(scales, 1, axis=1)
        case "codes of two experts swapped":
            codes[:, [0, 1]] = codes[:, [1, 0]]
        case "codes transposed":
            codes[...] = codes.reshape(len(codes), codes.shape[2], -1).swapaxes(1, 2).copy()
    return changed


@pytest.mark.parametrize(
    "what", ["a scale is off", "scales of the neighbour", "codes of two experts swapped", "codes transposed"]
)
def test_a_wrongly_filled_window_fails(what: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_in, decode = ExpertWindow.take_in, ExpertWindow.decode
    monkeypatch.setattr(ExpertWindow, "take_in", lambda self, *part: take_in(self, part[0], _broken(part[1], what)))
    monkeypatch.setattr(ExpertWindow, "decode", lambda self, *at: decode(self, *at[:2], _broken(at[2], what)))
    report = validate(trained, STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128))
    exact = [c for c in report.comparisons if c.reference == ROUNDED]
    assert all(c.failure.startswith("max abs") for c in exact)
    assert len(selftest(trained).failures) >= 3


def test_a_reference_that_does_not_round_differs_more(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molkv_export.modeling.molkv.MolkvForCausalLM.round_window", lambda _: None)
    report = validate(trained, STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128))
    assert _worst(report) > 0.2


@pytest.mark.parametrize(
    ("name", "profile", "message"),
    [
        ("mole", "cpu", "expected float32 for a model without an expert window"),
        ("dense", "cpu", "expected float32 for a model without an expert window"),
        ("molkv", "coreml", "expected float32 in profile coreml"),
        ("molkv", "nnapi", "expected float32 in profile nnapi"),
    ],
)
def test_an_int8_window_is_refused_for_models_without_one(
    name: str, profile: str, message: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"window_dtype: found int8, {message}$"):
        export(checkpoints(name), tmp_path / "bundle", profiles=[profile], graph=INT8)


@pytest.mark.parametrize("name", ["mole", "molkv"])
def test_a_manifest_with_a_wrong_window_dtype_is_refused(
    name: str, bundles: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles(name), tmp_path / "bundle")
    edit_manifest(bundle, lambda manifest: manifest["graphs"]["cpu"].update(window_dtype="int8"))
    message = {
        "mole": "graphs.cpu.window_dtype: found int8, expected float32, as in all static graphs and all models without",
        "molkv": "its inputs in the manifest differ from those that the model's configuration requires",
    }[name]
    with pytest.raises(BundleError, match=message):
        Generator(bundle)
