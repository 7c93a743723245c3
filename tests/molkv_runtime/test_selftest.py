"""Golden vectors: their definition, and the self-test, which fails after any change of the bundle or the driver."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from molkv_bundle import GOLDEN, Bundle, BundleError, Projection, ProviderError, read_golden
from molkv_bundle.golden import PROJECTIONS
from molkv_export.families import open_checkpoint
from molkv_export.golden import write_golden
from molkv_export.source.model import SourceModel
from molkv_runtime import Generator, Sequences, Target, selftest
from molkv_runtime.tokenizer import bundle_tokenizer
from tests.manifests import edit_manifest, replace_file
from tests.models import KINDS, STDLIB_MINI
from tests.molkv_export.parity.breaking import keys_not_rotated, swap_experts


@pytest.fixture
def bundle(stdlib_mini_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_a_sound_bundle_passes_in_every_format(name: str, dtype: str, bundles: Callable[..., Path]) -> None:
    result = selftest(bundles(name, dtype))
    assert result.failures == []
    for phase in result.phases:
        assert phase.right_tokens == phase.certain_tokens > 0.9 * phase.positions
        assert phase.max_abs_logit < phase.limits.max_abs / 2
        assert phase.relative_l2 < phase.limits.relative_l2 * 0.6
    assert result.greedy_identical == result.greedy_tokens


def test_nan_logits_fail_in_every_phase(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Sequences.decode
    monkeypatch.setattr(Sequences, "decode", lambda *arguments: decode(*arguments) * np.float32("nan"))
    result = selftest(bundle)
    assert [failure.partition(":")[0] for failure in result.failures[:2]] == [
        "step-by-step decode",
        "decode in a batch",
    ]
    assert "greedy text: position" in result.failures[2]
    assert (result.greedy_identical, result.greedy_tokens) == (0, selftest(bundle).greedy_tokens)


def test_the_trained_model_passes_and_its_vectors_are_small(bundle: Path) -> None:
    result = selftest(bundle)
    assert result.failures == []
    assert result.phases[0].positions > 200
    assert result.greedy_tokens > 40
    assert (bundle / GOLDEN).stat().st_size < 1_000_000


def test_golden_vectors_are_computed_by_the_source_model(stdlib_mini_bundle: Path) -> None:
    """Compute them by a second implementation, directly in PyTorch."""
    opened = Bundle(stdlib_mini_bundle)
    texts = read_golden(opened).texts
    assert max(len(text.input_ids) for text in texts) > 2 * opened.config.expert_window
    assert any("Grüße" in bundle_tokenizer(opened).decode(text.input_ids.tolist()) for text in texts)
    generator = Generator(opened)
    with open_checkpoint(STDLIB_MINI) as source:
        model = SourceModel(source)
        for text in texts:
            logits = model.logits(text.input_ids.astype(np.int64), generator.store)
            for row, ids, kept in zip(logits, text.top_ids, text.top_logits, strict=True):
                assert set(np.argsort(-row, kind="stable")[:16]) == set(ids)
                assert kept == pytest.approx(np.sort(row)[::-1][:16], abs=1e-5)
            whole = np.concatenate([text.input_ids, text.greedy_ids]).astype(np.int64)
            after = model.logits(whole, generator.store)[len(text.input_ids) - 1 : -1]
            assert after.argmax(axis=-1).tolist() == text.greedy_ids.tolist()


def _hash(value: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        value ^= value >> shift
        value = value * factor % 2**32
    return value


def test_the_projection_follows_the_specification() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 97)).astype(np.float32)
    found = Projection(97).of(logits)
    for row, projected in zip(logits.tolist(), found.tolist(), strict=True):
        for r in range(PROJECTIONS):
            signs = [-1 if _hash(v + 1) >> r & 1 else 1 for v in range(97)]
            expected = sum(s * x for s, x in zip(signs, row, strict=True)) / 97**0.5
            assert projected[r] == pytest.approx(expected, abs=1e-6)
    assert _hash(1) == 0x514E28B7  # a published value of the hash


def test_one_wrong_logit_anywhere_changes_every_projection() -> None:
    logits = np.zeros((1, 50_304), np.float32)
    logits[0, 40_000] = 0.1
    assert (np.abs(Projection(50_304).of(logits)) > 1e-4).all()


# --- alterations


def test_a_flipped_bit_in_any_file_fails(bundle: Path) -> None:
    for name in sorted(path.name for path in bundle.iterdir() if path.name not in ("manifest.json", GOLDEN)):
        content = (bundle / name).read_bytes()
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        (bundle / name).write_bytes(changed)
        assert any(name in failure for failure in selftest(bundle).failures), name
        (bundle / name).write_bytes(content)
    assert selftest(bundle).failures == []


def test_a_changed_weight_with_a_matching_manifest_fails(bundle: Path) -> None:
    """Change a weight of the LM head, of a token that no golden text holds."""
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    (value,) = struct.unpack_from("<f", content, len(content) // 2)
    struct.pack_into("<f", content, len(content) // 2, value + 0.1)
    replace_file(bundle, "model.onnx.data", bytes(content))
    failures = selftest(bundle).failures
    assert failures
    assert all(" is " in failure for failure in failures[:2])  # found by its numbers, not by its checksum


def test_an_altered_driver_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys_not_rotated(bundle, monkeypatch)
    failures = selftest(bundle).failures
    assert [failure.partition(":")[0] for failure in failures] == [
        "prefill in chunks",
        "step-by-step decode",
        "decode in a batch",
        "greedy text",
    ]


def test_one_nan_logit_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from molkv_runtime import Sequences

    original = Sequences.decode

    def broken(self: Sequences, *arguments: object) -> np.ndarray:
        logits = original(self, *arguments)  # type: ignore[arg-type]
        logits[0, 5] = np.nan
        return logits

    monkeypatch.setattr(Sequences, "decode", broken)
    assert any(failure.startswith("step-by-step decode: ") for failure in selftest(bundle).failures)


def test_golden_vectors_do_not_hide_a_wrong_record(bundle: Path) -> None:
    """Make golden vectors for a bundle whose store is wrong: its self-test fails."""
    with pytest.MonkeyPatch.context() as patch:
        swap_experts("value", 1)(bundle, patch)
    with open_checkpoint(STDLIB_MINI) as source:
        write_golden(source, Bundle(bundle))
    replace_file(bundle, GOLDEN, (bundle / GOLDEN).read_bytes())
    assert selftest(bundle).failures


# --- bad input


def test_a_bundle_without_vectors_is_refused(bundle: Path) -> None:
    (bundle / GOLDEN).unlink()
    edit_manifest(bundle, lambda manifest: manifest["files"].pop(GOLDEN))
    with pytest.raises(BundleError, match=r"files: 'golden.safetensors' is missing, but another field"):
        selftest(bundle)


def _rewrite(bundle: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    with safe_open(bundle / GOLDEN, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    replace_file(bundle, GOLDEN, save(tensors, metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda _, m: m.update(golden_version="1"),
            r"golden.safetensors: golden_version: found 1, expected 2; export the model again",
        ),
        (lambda _, m: m.clear(), r"golden_version: found none, expected 2"),
        (lambda t, _: t.pop("limits"), r"'limits' is missing"),
        (lambda t, _: t.update(limits=np.ones(3, np.float32)), r"'limits' is F32 \[3\], expected F32 \[2\]"),
        (
            lambda t, _: t.update(limits=np.array([1, np.inf], np.float32)),
            r"limits: found \[1.0, inf\], expected finite",
        ),
        (
            lambda t, _: t.update(limits=np.array([np.nan, 1], np.float32)),
            r"limits: found \[nan, 1.0\], expected finite",
        ),
        (lambda t, _: t.update(limits=np.array([-1, 1], np.float32)), r"limits: found \[-1.0, 1.0\], expected finite"),
        (lambda t, _: t.pop("texts.0.projection"), r"'texts.0.projection' is missing"),
        (lambda t, _: t.clear(), r"'limits' is missing"),
        (lambda t, _: t.update(more=np.zeros(1, np.int32)), r"'more' is missing, or not expected in a file"),
        (
            lambda t, _: t.update({"texts.0.input_ids": np.zeros(3, np.int32)}),
            r"'texts.0.top_ids' is I32 \[23, 16\], expected I32 \[3, 16\]",
        ),
        (lambda t, _: t.update({"texts.0.top_ids": t["texts.0.top_ids"] + 4096}), r"holds .*, expected token ids"),
        (lambda t, _: t.update({"texts.0.greedy_ids": np.full(2, -1, np.int32)}), r"holds .*, expected token ids"),
        (lambda t, _: t.update({"texts.0.projection": np.zeros(3, np.int32)}), r"is I32 \[3\], expected F32"),
        (lambda t, _: t.update({"texts.0.greedy_ids": np.zeros(5000, np.int32)}), r"5000 greedy tokens, expected 1"),
    ],
)
def test_invalid_golden_vectors_are_refused(
    change: Callable[[dict[str, np.ndarray], dict[str, str]], object], message: str, bundle: Path
) -> None:
    _rewrite(bundle, change)
    with pytest.raises(BundleError, match=message):
        selftest(bundle)


def test_an_absent_provider_is_an_error(bundle: Path) -> None:
    with pytest.raises(ProviderError, match="coreml"):
        selftest(bundle, target=Target("coreml"))


def test_shapes_larger_than_any_memory_are_refused(bundle: Path) -> None:
    """Test a tensor of 0 bytes, whose shape fits the file."""
    content = (bundle / GOLDEN).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["texts.4.greedy_ids"]["shape"] = [0, 2**62, 2**62]
    text = json.dumps(header).encode()
    replace_file(bundle, GOLDEN, len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(BundleError, match=r"'texts.4.greedy_ids' is I32 \[0, .*\], expected I32 \[0\]"):
        selftest(bundle)
