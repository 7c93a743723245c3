"""A correct bundle passes validation; every broken bundle fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

import molkv_export.exporter
import molkv_export.graph.cpu
import molkv_export.tables.table_writer
from molkv_bundle import CheckpointError, Records, RequestError, RowDtype
from molkv_export import GraphOptions, Report, export, validate
from molkv_export.checkpoints import Checkpoint
from molkv_export.graph.linear import BlockwiseLinear, RowwiseInt8Linear
from molkv_export.parity.agreement import GreedyResult
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.validate import ROUNDED, TRAINED
from molkv_runtime import selftest
from tests.manifests import replace_file
from tests.models import KINDS, STDLIB_MINI

SMALL = Scope(sequences=2, continuations=3, new_tokens=20)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_a_bundle_of_every_kind_of_model_passes(
    name: str, dtype: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path]
) -> None:
    # Random models have no quality to lose, so only the exact comparison is checked.
    report = validate(bundles(name, dtype), checkpoints(name), scope=SMALL)
    exact = [comparison for comparison in report.comparisons if comparison.reference == ROUNDED]
    assert len(exact) == 6
    assert report.failures == []
    assert not report.gate_applies
    assert _greedy(report).identical == 3
    assert all(comparison.metrics.positions >= 4 for comparison in exact)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", get_args(RowDtype))
def test_the_trained_model_passes_every_gate(dtype: Any, bundles: Callable[..., Path]) -> None:
    scope = Scope(2, 20, 256) if dtype == "float16" else Scope(1, 4, 64, text_length=256)
    report = validate(bundles("stdlib-mini", dtype), STDLIB_MINI, scope=scope)
    assert report.failures == []
    found = _greedy(report)
    assert (found.identical, found.mean_length) == (found.continuations, found.tokens_each)
    assert (found.continuations, found.tokens_each) == (scope.continuations, scope.new_tokens)
    by_reference = {c.reference: c.metrics for c in report.comparisons if c.phase == "one-shot prefill"}
    if dtype != "float32":  # the cost of rounding shows against "as trained", not "as stored"
        assert by_reference[TRAINED].max_abs > 10 * by_reference[ROUNDED].max_abs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
@pytest.mark.parametrize("name", ["molkv", "molkv-gated", "mole", "dense"])
def test_a_bundle_of_every_kind_passes_with_rounded_weights(
    name: str, dtype: Any, checkpoints: Callable[[str], Path], bundles: Callable[..., Path]
) -> None:
    report = validate(
        bundles(name, "float16", graph=GraphOptions(dtype)), checkpoints(name), scope=SMALL, with_bisection=True
    )
    assert report.failures == []
    trained, stored = (
        next(c.metrics for c in report.comparisons if c.reference == reference) for reference in (TRAINED, ROUNDED)
    )
    assert trained.relative_l2 > stored.relative_l2  # rounding of weights costs more than rounding in arithmetic


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("float16", "float32"), ("int8", "float32"), ("int4", "float32"), ("float32", "int8")]
)
def test_the_trained_model_passes_every_gate_with_rounded_weights(
    dtype: Any, kv_dtype: Any, bundles: Callable[..., Path]
) -> None:
    bundle = bundles("stdlib-mini", "int8", graph=GraphOptions(dtype, kv_dtype=kv_dtype))
    report = validate(bundle, STDLIB_MINI, scope=Scope(1, 2, 64), with_bisection=True)
    assert report.failures == []
    assert report.quality.metrics.kl_mean < report.gate.kl_mean / 2
    assert selftest(bundle).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_weight_that_was_rounded_wrongly_fails(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = (RowwiseInt8Linear if dtype == "int8" else BlockwiseLinear).encode

    def wrong(self: Any, weight: Any) -> Any:
        parts = encode(self, weight)
        return {**parts, "weight_scale": parts["weight_scale"] * np.float32(1.2)}

    monkeypatch.setattr(f"molkv_export.graph.linear.{encode.__qualname__}", wrong)
    export(STDLIB_MINI, tmp_path / "bundle", graph=GraphOptions(dtype))
    report = validate(tmp_path / "bundle", STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128), with_bisection=True)
    assert any(failure.startswith("one-shot prefill (as stored): max abs") for failure in report.failures)
    assert selftest(tmp_path / "bundle").failures


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_scale_that_is_one_step_off_fails(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = (RowwiseInt8Linear if dtype == "int8" else BlockwiseLinear).encode

    def wrong(self: Any, weight: Any) -> Any:
        parts = encode(self, weight)
        parts["weight_scale"][7] *= np.float32(128 / 127)
        return parts

    with monkeypatch.context() as patch:
        patch.setattr(f"molkv_export.graph.linear.{encode.__qualname__}", wrong)
        export(STDLIB_MINI, tmp_path / "bundle", graph=GraphOptions(dtype))
    report = validate(tmp_path / "bundle", STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128))
    assert report.failures[0].startswith("weights: model.layers.0.self_attn.q_proj.weight [7, ")


def _greedy(report: Report) -> GreedyResult:
    return next(greedy for greedy in report.greedy if greedy.reference == ROUNDED)


def _edit_records(edit: Callable[[Records], None]) -> Callable[[pytest.MonkeyPatch], None]:
    def fault(patch: pytest.MonkeyPatch) -> None:
        original = molkv_export.tables.table_writer.fill

        def broken(records: Records, *arguments: Any) -> None:
            original(records, *arguments)
            edit(records["layers"])

        patch.setattr(molkv_export.tables.table_writer, "fill", broken)

    return fault


def _swap_values_of_two_experts(layers: Records) -> None:
    layers["value"][:, 1] = layers["value"][:, 1][:, [1, 0, 2, 3]]


def _zero_one_rare_value(layers: Records) -> None:
    """Zero a few numbers of the last record of each slab. The texts below do not contain these token ids."""
    layers["value"][-1, 2, 3, :5] = 0


def _zero_keys(layers: Records) -> None:
    layers["key"] = 0


def _edit_manifest(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Write a configuration that differs from the trained model into the manifest, which the driver reads."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        original = molkv_export.exporter.Manifest

        def broken(**fields: Any) -> Any:
            model = msgspec.structs.replace(fields["model"], **changes)
            graph = msgspec.structs.replace(fields["graphs"]["cpu"], expert_window=model.expert_window)
            return original(**{**fields, "model": model, "graphs": {"cpu": graph}})

        patch.setattr(molkv_export.exporter, "Manifest", broken)

    return fault


def _shift_rotation(patch: pytest.MonkeyPatch) -> None:
    """Rotate everything in the graph by one position too far.

    Attention does not change, because queries and keys rotate alike. Expert queries become wrong, because the host
    rotates expert keys.
    """
    original = molkv_export.graph.cpu.rotary_tables

    def broken(positions: np.ndarray, *arguments: Any) -> Any:
        return original(positions + 1, *arguments)

    patch.setattr(molkv_export.graph.cpu, "rotary_tables", broken)


def _scale_norm(patch: pytest.MonkeyPatch) -> None:
    original = Checkpoint.tensor

    def broken(self: Checkpoint, name: str, start: int = 0, stop: int | None = None) -> Any:
        tensor = original(self, name, start, stop)
        return tensor * 1.01 if name == "model.layers.2.post_attention_layernorm.weight" else tensor

    patch.setattr(Checkpoint, "tensor", broken)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "values of two experts swapped": _edit_records(_swap_values_of_two_experts),
    "keys zeroed": _edit_records(_zero_keys),
    "window one shorter": _edit_manifest(expert_window=31),
    "window one longer": _edit_manifest(expert_window=33),
    "rotation one position off": _shift_rotation,
    "one norm weight scaled by 1.01": _scale_norm,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_export_fails_validation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        FAULTS[name](patch)
        export(STDLIB_MINI, tmp_path / "bundle")
    report = _validate_quickly(tmp_path / "bundle")
    assert report.failures
    exact = [comparison for comparison in report.comparisons if comparison.reference == ROUNDED]
    assert all(comparison.failure for comparison in exact)


@pytest.mark.slow
def test_a_wrong_record_that_no_text_reads_fails_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _edit_records(_zero_one_rare_value)(patch)
        export(STDLIB_MINI, tmp_path / "bundle")
    report = _validate_quickly(tmp_path / "bundle")
    assert report.weights is not None
    assert report.weights.failure == ""
    failures = report.failures
    assert len(failures) == 1
    assert failures[0].startswith("records: expert_value.2 of token id ")


def test_the_same_check_passes_without_a_fault(stdlib_mini_bundle: Path) -> None:
    assert _validate_quickly(stdlib_mini_bundle).failures == []


def _validate_quickly(bundle: Path) -> Report:
    return validate(bundle, STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128))


def test_nan_logits_fail(bundles: Callable[..., Path], checkpoints: Callable[[str], Path], monkeypatch: Any) -> None:
    from molkv_export.parity import runners

    def broken(generator: Any, ids: np.ndarray) -> np.ndarray:
        logits = runners.one_shot_prefill(generator, ids)
        logits[3, 5] = np.nan
        return logits

    monkeypatch.setitem(runners.PHASES, "chunked prefill", broken)
    report = validate(bundles("molkv"), checkpoints("molkv"), scope=SMALL)
    assert any(failure.startswith("chunked prefill") for failure in report.failures)


def test_another_checkpoint_than_the_source_is_refused(
    bundles: Callable[..., Path], checkpoints: Callable[[str], Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: sha256 is .* made from"):
        validate(bundles("molkv"), checkpoints("molkv-plain"), scope=SMALL)


def test_a_text_shorter_than_the_context_is_refused(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("import os\n")
    with pytest.raises(RequestError, match=r"short.txt: has \d+ tokens, expected at least 512"):
        validate(stdlib_mini_bundle, STDLIB_MINI, text=tmp_path / "short.txt")


def test_a_text_for_a_bundle_without_a_tokenizer_is_refused(
    bundles: Callable[..., Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "novel.txt").write_text("Call me Ishmael.")
    with pytest.raises(RequestError, match=r"novel.txt: cannot be encoded, because .* has no tokenizer.json"):
        validate(bundles("molkv"), checkpoints("molkv"), text=tmp_path / "novel.txt")


# --- two bundles


@pytest.mark.slow
def test_int4_is_compared_with_float32(tmp_path: Path) -> None:
    for dtype in ("int4", "float32"):
        export(STDLIB_MINI, tmp_path / dtype, experts_dtype=dtype)  # type: ignore[arg-type]
    scope = Scope(2, 4, 32)
    report = validate(tmp_path / "int4", against=tmp_path / "float32", scope=scope)
    source = validate(tmp_path / "int4", STDLIB_MINI, scope=scope)
    assert report.failures == []
    assert (report.weights, report.records) == (None, None)
    assert report.quality.metrics.kl_mean == pytest.approx(source.quality.metrics.kl_mean, rel=1e-3)
    assert report.greedy[0].mean_length == source.greedy[0].mean_length < 32
    same = validate(tmp_path / "float32", against=tmp_path / "float32", scope=scope)
    assert same.quality.metrics.max_abs == 0
    assert same.greedy[0].identical == 4


@pytest.mark.slow
def test_two_bundles_that_are_too_far_apart_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _edit_records(_swap_values_of_two_experts)(patch)
        export(STDLIB_MINI, tmp_path / "broken")
    export(STDLIB_MINI, tmp_path / "sound")
    report = validate(tmp_path / "broken", against=tmp_path / "sound", scope=Scope(1, 1, 8, text_length=128))
    assert report.failures[0].startswith("one-shot prefill (other bundle): mean KL")


def test_bundles_of_different_models_are_refused(
    bundles: Callable[..., Path], stdlib_mini_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"vocab_size is 97, expected 4096 as in"):
        validate(stdlib_mini_bundle, against=bundles("molkv"))
    other = shutil.copytree(stdlib_mini_bundle, tmp_path / "other")
    replace_file(other, "tokenizer.json", (other / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(RequestError, match=r"tokenizer.json differs from that of"):
        validate(stdlib_mini_bundle, against=other)


def test_exactly_one_reference_is_needed(stdlib_mini_bundle: Path) -> None:
    with pytest.raises(
        RequestError, match=r"found no reference, expected exactly one of --checkpoint, --against and --expected"
    ):
        validate(stdlib_mini_bundle)
    for other in ("against", "expected"):
        with pytest.raises(RequestError, match=f"found --checkpoint and --{other}, expected exactly one"):
            validate(stdlib_mini_bundle, STDLIB_MINI, **{other: stdlib_mini_bundle})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="with_bisection: found --against, expected --checkpoint"):
        validate(stdlib_mini_bundle, against=stdlib_mini_bundle, with_bisection=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_fails_even_if_quality_is_not_judged(bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from molkv_export.parity import runners

    def broken(generator: Any, ids: np.ndarray) -> np.ndarray:
        logits = runners.one_shot_prefill(generator, ids)
        logits[3, 5] = np.nan
        return logits

    monkeypatch.setitem(runners.PHASES, "one-shot prefill", broken)
    report = validate(bundles("molkv", "int8"), against=bundles("molkv"), scope=SMALL)
    assert report.failures == ["one-shot prefill (other bundle): max abs is nan"]
