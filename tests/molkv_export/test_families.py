"""A new family needs only a few new files and one dict entry in each package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load, save_file

import molkv_bundle
import molkv_export.families
import molkv_runtime.families
from molkv_bundle import BundleError, CheckpointError, RequestError, RowDtype
from molkv_export import GraphOptions, Scope, add_profile, export, inspect, package, validate
from molkv_export.checkpoints.checkpoint import Reader
from molkv_runtime import Generator, selftest
from molkv_runtime.experts import PresentExperts
from tests.manifests import edit_manifest, replace_file
from tests.molkv_export.toy_family import reader
from tests.molkv_export.toy_family.config import ToyConfig
from tests.molkv_export.toy_family.graph import build_static_toy_graph, build_toy_graph
from tests.molkv_export.toy_family.model import ToyForCausalLM

pytestmark = pytest.mark.slow

CONFIG = ToyConfig(
    model_type="toy",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=1,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=24,
    head_dim=16,
    wide_head_dim=32,
    num_key_value_heads=2,
    hidden_size_per_layer_input=64,
)
SCOPE = Scope(sequences=2, continuations=1, new_tokens=4)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toy family."""
    toy_reader: Reader = reader
    toy = molkv_export.families.Family((toy_reader,), ToyForCausalLM, build_toy_graph, build_static_toy_graph)
    monkeypatch.setitem(molkv_bundle.FAMILIES, "toy", ToyConfig)
    monkeypatch.setitem(molkv_runtime.families.FAMILIES, "toy", molkv_runtime.families.Family(PresentExperts))
    monkeypatch.setitem(molkv_export.families.FAMILIES, "toy", toy)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a model with random weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, parameter in ToyForCausalLM(CONFIG).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        tensors[reader.published_name(name)] = (
            1 + 0.2 * noise if parameter.dim() < 2 else noise / parameter.shape[-1] ** 0.5
        )
        if ".experts." in name:
            tensors[reader.published_name(name)] = noise
    tensors[f"{reader.IGNORED}weight"] = torch.full([3], torch.nan)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    fields = {**msgspec.structs.asdict(CONFIG), "architectures": ["Toy"]}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "int8", "nf4"])
def test_the_toy_family_is_exported_and_computes_what_its_model_computes(
    checkpoint: Path, tmp_path: Path, dtype: RowDtype
) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, experts_dtype=dtype)
    report = validate(bundle, checkpoint, scope=SCOPE, with_bisection=True)
    assert report.failures == []
    assert report.bisection is not None
    assert {error.name for error in report.bisection.phases[0].errors} >= {
        "layer 1, gated vector",
        "layer 2, attention",
    }
    assert selftest(bundle).failures == []
    assert inspect(bundle).sizes.ram_kv_cache == 24 * 4 * 2 * (2 * 16 + 2 * 32)  # the sharing layer has none


@pytest.mark.parametrize("dense", ["int8", "int4"])
def test_the_toy_family_has_quantized_weights(checkpoint: Path, tmp_path: Path, dense: molkv_bundle.DenseDtype) -> None:
    export(checkpoint, tmp_path / "bundle", graph=GraphOptions(dense_dtype=dense, block_size=16))
    assert validate(tmp_path / "bundle", checkpoint, scope=SCOPE, with_bisection=True).failures == []


def test_batches_and_chunks_compute_the_same_as_one_prompt(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle", experts_dtype="float32")
    generator = Generator(tmp_path / "bundle")
    ids = np.random.default_rng(1).integers(0, 97, 20)
    whole = generator.sequences(prefill_chunk=20).prefill(0, ids, all_logits=True)
    state = generator.sequences(2, prefill_chunk=3)
    pieces = [state.prefill(1, ids[:7], all_logits=True), state.prefill(1, ids[7:11], all_logits=True)]
    state.prefill(0, ids[3:5])
    pieces += [state.decode([5, token])[1:].copy() for token in ids[11:]]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    assert np.abs(whole).max() > 1


def test_a_wrong_weight_is_named(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, experts_dtype="float32")
    model = onnx.load(bundle / "model.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.name == "model.layers.1.per_layer_gate.up_proj.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    for name in ("model.onnx", "model.onnx.data"):
        (bundle / name).unlink()
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    for name in ("model.onnx", "model.onnx.data"):
        replace_file(bundle, name, (bundle / name).read_bytes())
    report = validate(bundle, checkpoint, scope=SCOPE, with_bisection=True)
    assert "layer 1, gated vector" in report.failures[0]
    assert "the fault is in the graph" in (report.bisection.second_opinion if report.bisection else "")
    assert selftest(bundle).failures


def test_static_graphs_of_the_toy_family_compute_the_same(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, experts_dtype="float16")
    add_profile(checkpoint, bundle, "nnapi")
    assert validate(bundle, checkpoint, scope=SCOPE, profile="nnapi", with_bisection=True).failures == []


def test_a_family_that_the_native_driver_lacks_is_not_packaged(checkpoint: Path, tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "app"
    export(checkpoint, bundle, profiles=["nnapi"])
    expected = "has a model of type toy, expected mole, molkv or gemma4_text, because the driver in C"
    with pytest.raises(RequestError, match=expected):
        package(bundle, out, target="android")
    assert not out.exists()


def test_a_profile_that_the_family_lacks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="profile: found coreml, expected cpu or nnapi for a model of type toy"):
        export(checkpoint, tmp_path / "bundle", profiles=["cpu", "coreml"])
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, profiles=["nnapi"])
    edit_manifest(bundle, lambda manifest: manifest.update(graphs={"coreml": manifest["graphs"]["nnapi"]}))
    with pytest.raises(
        BundleError, match="graphs: found profile 'coreml', expected cpu or nnapi for models of type toy"
    ):
        inspect(bundle)


@pytest.mark.parametrize("options", [{"dense_dtype": "qdq-int8"}, {"kv_dtype": "int8"}])
def test_formats_that_need_calibration_are_refused(checkpoint: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    profile = "nnapi" if "dense_dtype" in options else "cpu"
    with pytest.raises(RequestError, match="expected another dtype for a model of type toy"):
        export(checkpoint, tmp_path / "bundle", profiles=[profile], graph=GraphOptions(**options))


def test_unknown_tensors_are_refused_unless_their_prefix_is_ignored(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    save_file({**load(path.read_bytes()), "model.audio_tower.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"tensor 'model\.audio_tower\.weight' is not part of the model"):
        export(checkpoint, tmp_path / "bundle")


def test_a_family_that_is_not_registered_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle)
    monkeypatch.delitem(molkv_bundle.FAMILIES, "toy")
    with pytest.raises(BundleError, match="""model: model_type: found "toy", expected 'mole' or 'molkv'"""):
        inspect(bundle)
