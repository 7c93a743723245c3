"""Every fault fails validation and is named; a correct bundle has no finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

import molkv_export.parity.bisect as bisecting
from molkv_bundle import Arrays, Bundle, BundleError
from molkv_export.families import open_checkpoint, reference_model
from molkv_export.parity.bisect import Bisection, bisect
from molkv_export.source.model import SourceModel
from molkv_runtime import BoundCall, Target
from molkv_runtime.onnxruntime_session import CPU
from tests.manifests import replace_file
from tests.models import CONFIGS, KINDS
from tests.molkv_export.parity.breaking import attribute
from tests.molkv_export.parity.faults import FAULTS, SCOPE, Fault, examine

SHORT = msgspec.structs.replace(SCOPE, text_length=128)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_caught_and_named(fault: Fault, stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    outcome = examine(fault, stdlib_mini_bundle, tmp_path, SHORT)
    assert outcome.found is not None
    assert (outcome.found.layer, outcome.found.branch) == (fault.layer, fault.branch)
    assert outcome.report.failures
    assert outcome.selftest_failed
    bisection = outcome.report.bisection
    assert bisection is not None
    assert outcome.found.name in bisection.culprit
    # Also for faults of the driver, because the same driver runs both evaluators.
    assert "the fault is in the graph or in the inputs from the host" in bisection.second_opinion


def test_there_are_enough_faults_of_every_kind() -> None:
    kinds = {fault.what.partition(":")[0] for fault in FAULTS}
    assert kinds == {"weights", "rows", "masks", "positions", "eps", "scale", "window", "order", "dtype"}
    assert len({fault.what for fault in FAULTS}) == len(FAULTS) >= 30


def _bisect(name: str, dtype: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path]) -> Bisection:
    with open_checkpoint(checkpoints(name)) as source:
        ids = np.random.default_rng(3).integers(0, source.config.vocab_size, 48)
        return bisect(Bundle(bundles(name, dtype)), CPU, SourceModel(source), ids)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_a_sound_bundle_stays_well_within_the_limit(
    name: str, dtype: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path]
) -> None:
    bisection = _bisect(name, dtype, checkpoints, bundles)
    assert bisection.culprit == bisection.second_opinion == ""
    for phase in bisection.phases:
        branches = 7 if CONFIGS[name.removesuffix("/lookup")].num_experts else 5
        layers = [error.layer for error in phase.errors]
        assert all(layers.count(layer) in (5, branches) for layer in range(3))
        assert layers.count(None) == 3
        assert max(error.error for error in phase.errors) < phase.limit / 2
        assert any(error.error > 0 for error in phase.errors)


def _change_kernels(patch: pytest.MonkeyPatch, change: Callable[[Arrays], None]) -> None:
    """Change the outputs of ONNX Runtime, and of no other evaluator."""

    class Changed(BoundCall):
        def __init__(self, session: Any, inputs: Arrays, outputs: Arrays, target: Target) -> None:
            super().__init__(session, inputs, outputs, target)
            self.outputs = outputs

        def run(self) -> None:
            super().run()
            change(self.outputs)

    patch.setattr(bisecting, "BoundCall", Changed)


def test_a_wrong_kernel_is_distinguished_from_a_wrong_graph(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scale(outputs: Arrays) -> None:
        outputs["layers.1.feed_forward"] *= 1.01

    _change_kernels(monkeypatch, scale)
    bisection = _bisect("molkv", "float32", checkpoints, bundles)
    assert "layer 1, feed forward" in bisection.culprit
    assert bisection.second_opinion.endswith("the fault is in provider 'cpu'")


def test_a_nan_is_named(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(outputs: Arrays) -> None:
        found = outputs["layers.2.experts"]  # [1, T, d]
        if found.shape[1] > 7:
            found[0, 7, 3] = np.nan

    _change_kernels(monkeypatch, spoil)
    assert (
        "layer 2, experts: relative error inf at position 7"
        in _bisect("molkv", "float32", checkpoints, bundles).culprit
    )


def test_a_graph_whose_values_have_no_names_is_refused(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    import shutil

    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "layers.2.attention" else name for name in names]
    replace_file(bundle, "model.onnx", model.SerializeToString())
    message = r"model.onnx: has no value named 'layers.2.attention'.*export the model again"
    with pytest.raises(BundleError, match=message):
        bisecting.TappedGraph(Bundle(bundle), CPU, reference_model(Bundle(bundle).config).taps())


@pytest.mark.slow
def test_a_fault_in_the_last_step_of_the_context_is_found(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    """Attention to all tokens but one is wrong only at the last position of the context."""
    fault = Fault("", 3, "attention", attribute(3, "self_attn", "GroupQueryAttention", local_window_size=511))
    outcome = examine(fault, stdlib_mini_bundle, tmp_path)
    assert outcome.found is not None
    assert (outcome.found.layer, outcome.found.branch, outcome.found.position) == (3, "attention", 511)
    assert not outcome.selftest_failed  # golden texts are shorter than the context, see docs/parity.md
