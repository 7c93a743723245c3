"""Published MoLE checkpoints compute the paper's equations and export like all other checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from molkv_bundle import ROW_FORMATS, Bundle, DenseDtype, RowDtype
from molkv_export import GraphOptions, export, validate
from molkv_export.families import open_checkpoint
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.validate import TRAINED
from molkv_export.source.model import SourceModel
from molkv_runtime import Generator, selftest
from tests.models import CONFIGS, random_model, save_checkpoint
from tests.molkv_export.checkpoints.published import (
    Tensors,
    published_config,
    table_tensors,
    training_tensors,
    write_folder,
)
from tests.molkv_export.checkpoints.stored import stored_values

pytestmark = pytest.mark.slow

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_theta": 500.0, "rms_norm_eps": 1e-3},
    "wide-heads": {"head_dim": 32},
}
FORMS = ("training", "table")
IDS = np.random.default_rng(3).integers(0, 97, 24)
FEW = Scope(sequences=2, continuations=2, new_tokens=12)


def _numpy_logits(ids: np.ndarray, fields: dict[str, Any], tensors: Tensors) -> np.ndarray:
    """MoLE's equations (arXiv 2503.15798, section 3) on the published names, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    heads, kv_heads, eps = fields["num_attention_heads"], fields["num_key_value_heads"], fields["rms_norm_eps"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[name]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def network(x: np.ndarray, at: str) -> np.ndarray:
        up = x @ w[f"{at}.up_proj.weight"].T
        return (up * (1 + np.vectorize(math.erf)(up / 2**0.5)) / 2) @ w[f"{at}.down_proj.weight"].T

    def split(x: np.ndarray, count: int) -> np.ndarray:  # [T, count * size] -> [heads, T, size]
        return x.reshape(len(ids), count, -1).transpose(1, 0, 2).repeat(heads // count, 0)

    def turn(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, -1)
        angle = np.arange(len(ids))[:, None] / fields["rope_theta"] ** (np.arange(a.shape[-1]) / a.shape[-1])
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    embedding = x = w["model.embed_tokens.weight"][ids]
    for layer in range(fields["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        a = norm(x, f"{at}input_layernorm.weight")
        q, k, v = (
            split(a @ w[f"{at}self_attn.{part}_proj.weight"].T, count)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        scores = turn(q) @ turn(k).transpose(0, 2, 1) / q.shape[-1] ** 0.5
        mixed = softmax(np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)) @ v
        h = x + mixed.transpose(1, 0, 2).reshape(len(ids), -1) @ w[f"{at}self_attn.o_proj.weight"].T
        n = norm(h, f"{at}post_attention_layernorm.weight")
        if "model.moe_table.weight" in w:
            table = w["model.moe_table.weight"].reshape(
                fields["vocab_size"], fields["num_hidden_layers"], -1, x.shape[-1]
            )
            experts = table[ids, layer]
        else:
            e = norm(embedding, f"{at}expert_layernorm.weight")
            experts = np.stack([network(e, f"{at}experts.{i}") for i in range(fields["num_experts"])], 1)
        routed = np.einsum("tn,tnd->td", softmax(n @ w[f"{at}router.weight"].T), experts)
        x = h + network(n, f"{at}mlp") + routed
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.asarray(norm(x, "model.norm.weight") @ head.T)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, dict[str, Any], Tensors]]:
    """Return a published folder and its contents, by variant and form. Dense weights are the same in both forms."""
    root = tmp_path_factory.mktemp("published")

    def make(variant: str, form: str) -> tuple[Path, dict[str, Any], Tensors]:
        model = random_model(msgspec.structs.replace(CONFIGS["mole"], expert_intermediate_size=48, **VARIANTS[variant]))
        fields = published_config(model.config, **VARIANTS[variant])
        tensors = {name: tensor.half().float() for name, tensor in training_tensors(model).items()}
        tensors = table_tensors(tensors, model.config) if form == "table" else tensors
        folder = root / f"{variant}-{form}"
        return folder if folder.exists() else write_folder(folder, fields, tensors), fields, tensors

    return make


Published = Callable[[str, str], tuple[Path, dict[str, Any], Tensors]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_model_computes_the_published_equations(variant: str, form: str, published: Published) -> None:
    folder, fields, tensors = published(variant, form)
    expected = _numpy_logits(IDS, fields, tensors)
    with open_checkpoint(folder) as checkpoint:
        found = SourceModel(checkpoint).logits(IDS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_folder_gives_the_same_bytes_as_our_own_format(
    variant: str, published: Published, tmp_path: Path
) -> None:
    folder, _, _ = published(variant, "training")
    model = random_model(msgspec.structs.replace(CONFIGS["mole"], expert_intermediate_size=48, **VARIANTS[variant]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    ours = save_checkpoint(model, tmp_path / "ours")
    found, expected = (export(source, tmp_path / name) for source, name in ((folder, "theirs.b"), (ours, "ours.b")))
    assert found.model == expected.model
    same = [name for name, info in expected.files.items() if found.files[name].sha256 == info.sha256]
    shards = {shard.file for shard in expected.experts.shards}
    assert {*found.files} - {*same} <= {"model.onnx", *shards}  # these files contain hashes of their source
    assert stored_values(tmp_path / "theirs.b") == stored_values(tmp_path / "ours.b")


def _is_the_model(bundle: Path, source: Path) -> None:
    """Compare with the model as stored only, because random weights are the worst case for small formats."""
    failures = validate(bundle, source, scope=FEW).failures
    assert not [failure for failure in failures if f"({TRAINED})" not in failure]
    assert not selftest(bundle).failures


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("experts_dtype", ROW_FORMATS)
def test_bundles_match_the_model_in_every_format_of_experts(
    experts_dtype: RowDtype, form: str, published: Published, tmp_path: Path
) -> None:
    folder, _, _ = published("grouped", form)
    export(folder, tmp_path / "bundle", experts_dtype=experts_dtype)
    _is_the_model(tmp_path / "bundle", folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("profile", "dense_dtype"),
    [
        *(("cpu", dtype) for dtype in ("float32", "float16", "int8", "int4")),
        *(("coreml", dtype) for dtype in ("float32", "float16")),
        *(("nnapi", dtype) for dtype in ("float32", "qdq-int8")),
    ],
)
def test_bundles_match_the_model_in_every_profile(
    profile: str, dense_dtype: DenseDtype, form: str, published: Published, tmp_path: Path
) -> None:
    folder, _, _ = published("grouped", form)
    graph = GraphOptions(dense_dtype) if profile == "cpu" else GraphOptions(dense_dtype, chunk_lengths=(1, 7))
    export(folder, tmp_path / "bundle", profiles=[profile], graph=graph)
    _is_the_model(tmp_path / "bundle", folder)
    for path in Bundle(tmp_path / "bundle").graph_paths().values():
        _check_mixers(path)


def _check_mixers(path: Path) -> None:
    """Check that the softmax of every router is in float32, and that there is no expert window and no expert mask."""
    model = onnx.load(path, load_external_data=False)
    softmax = [node for node in model.graph.node if node.op_type == "Softmax" and "expert_mixer" in node.name]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in softmax)
    onnx.save(model, path.with_name("looked_into.onnx"))
    session = onnxruntime.InferenceSession(path.with_name("looked_into.onnx"))
    types = {output.name: output.type for output in session.get_outputs()}
    assert [types[node.output[0]] for node in softmax] == ["tensor(float)"] * len(softmax) != []
    names = [value.name for value in model.graph.input]
    assert not [name for name in names if name.startswith(("expert_key", "expert_mask", "expert_rotary"))]


def test_both_forms_give_identical_tokens(published: Published, tmp_path: Path) -> None:
    texts = []
    for form in FORMS:
        export(published("plain", form)[0], tmp_path / form)
        tokens = Generator(tmp_path / form).stream([[5, 17, 3], [42]], max_new_tokens=40, stop_ids=frozenset())
        texts.append([(token.sequence, token.id) for token in tokens])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 80


def _as_one_file(folder: Path, tensors: Tensors) -> None:
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")


def _as_shards(folder: Path, tensors: Tensors) -> None:
    _shards(folder, tensors, "model-{:05d}-of-00002.safetensors", "model.safetensors.index.json", save_file)


def _as_torch_shards(folder: Path, tensors: Tensors) -> None:
    _shards(folder, tensors, "pytorch_model-{:05d}-of-00002.bin", "pytorch_model.bin.index.json", torch.save)


def _shards(folder: Path, tensors: Tensors, name: str, index: str, save: Callable[[Tensors, Path], object]) -> None:
    files = {tensor: name.format(1 + (number % 3 == 0)) for number, tensor in enumerate(tensors)}
    for file in set(files.values()):
        save({tensor: tensors[tensor] for tensor in tensors if files[tensor] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / index).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rewrite", [_as_one_file, _as_shards, _as_torch_shards])
def test_weights_are_read_from_every_file_format(
    rewrite: Callable[[Path, Tensors], None], form: str, published: Published, tmp_path: Path
) -> None:
    source, fields, tensors = published("plain", form)
    folder = write_folder(tmp_path / "folder", fields, tensors)
    (folder / "model.safetensors").unlink()
    rewrite(folder, tensors)
    with open_checkpoint(folder) as found, open_checkpoint(source) as expected:
        assert found.form == expected.form
        for name in expected.parameters:
            assert torch.equal(found.stored(name), expected.stored(name))
            assert torch.equal(found.stored(name, 1, 3), expected.stored(name)[1:3])
    export(folder, tmp_path / "bundle")
    _is_the_model(tmp_path / "bundle", folder)


def test_a_tied_head_may_be_stored_twice(published: Published, tmp_path: Path) -> None:
    _, fields, tensors = published("tied", "training")
    embedding = tensors["model.embed_tokens.weight"]
    folder = write_folder(tmp_path / "folder", fields, {**tensors, "lm_head.weight": embedding.clone()})
    with open_checkpoint(folder) as checkpoint:
        assert "lm_head.weight" not in checkpoint.parameters


@pytest.mark.parametrize(
    "others",
    [
        {"model_type": "mole", "torch_dtype": "float16"},
        {"rope_scaling": {"type": "default"}, "attention_dropout": 0.1},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16"},
        {"hidden_act": "gelu", "mlp_bias": False, "head_dim": 16},
        {"num_key_value_heads": None, "sliding_window": None},
    ],
)
def test_equivalent_configurations_are_accepted(others: dict[str, Any], published: Published, tmp_path: Path) -> None:
    source, fields, tensors = published("plain", "training")
    with open_checkpoint(source) as expected:
        folder = write_folder(tmp_path / "folder", {**fields, **others}, tensors)
        with open_checkpoint(folder) as found:
            assert found.config == expected.config


def _gpt_neox_tokenizer(path: Path) -> None:
    """Train a small tokenizer like that of GPT-NeoX: byte-level BPE, NFC, runs of spaces as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|padding|>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, limit_alphabet=64)
    tokenizer.train_from_iterator(["def mean(values): return sum(values) / len(values)"] * 9, trainer)
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True, special=False) for count in (4, 3, 2)])
    tokenizer.save(str(path))


def test_the_bundle_includes_tokenizer_and_end_of_text(published: Published, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(published("plain", "training")[0], folder)
    _gpt_neox_tokenizer(folder / "tokenizer.json")
    export(folder, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    generator = Generator(tmp_path / "bundle")
    assert generator.tokenizer.decode(generator.tokenizer.encode("def mean(values):    return").ids) == (
        "def mean(values):    return"
    )
    assert isinstance("".join(generator.text("def mean(", max_new_tokens=8)), str)
    assert generator.bundle.manifest.generation.eos_token_ids == (
        0,
    )  # from config.json, because generation_config.json is missing
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    export(folder, tmp_path / "second")
    assert Generator(tmp_path / "second").bundle.manifest.generation.eos_token_ids == (1, 2)
