"""Checkpoints that do not fit their configuration, or are not safe, are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from molkv_bundle import CheckpointError, ConfigError
from molkv_export import export
from molkv_export.families import open_checkpoint
from tests.faults.refusal import refused
from tests.models import CONFIGS, STDLIB_MINI, random_model, save_checkpoint

Edit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def folder(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints("molkv"), tmp_path / "checkpoint")


def _rewrite(folder: Path, edit: Edit) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


ROUTER = "model.layers.1.expert_mixer.query_proj.weight"
EXPERT = "model.layers.2.experts.networks.1.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(EXPERT), f"tensor '{EXPERT}' is missing (total: 1), expected shape [24, 64] by config.json"),
        (lambda t: t.update(extra=torch.ones(2)), "tensor 'extra' is not part of the model that config.json describes"),
        (lambda t: t.update({ROUTER: t[ROUTER].T.contiguous()}), f"'{ROUTER}' has shape [64, 8], expected [8, 64]"),
        (lambda t: t.update({ROUTER: t[ROUTER].long()}), f"'{ROUTER}' has dtype I64, expected one of BF16, F16, F32"),
        (lambda t: t[ROUTER][0].fill_(torch.nan), f"'{ROUTER}' holds NaN or infinite values"),
        (lambda t: t[EXPERT][3, 1].fill_(torch.inf), f"'{EXPERT}' holds NaN or infinite values"),
        (lambda t: t["model.embed_tokens.weight"][96, 0].fill_(-torch.inf), "embed_tokens.weight' holds NaN or inf"),
        (lambda t: t["model.norm.weight"][0].fill_(torch.nan), "'model.norm.weight' holds NaN or infinite values"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(edit: Edit, message: str, folder: Path) -> None:
    _rewrite(folder, edit)
    refused(folder, CheckpointError, message)


def test_a_mix_of_training_and_lookup_form_is_refused(folder: Path, checkpoints: Callable[[str], Path]) -> None:
    tables = load((checkpoints("molkv/lookup") / "model.safetensors").read_bytes())
    name = "model.layers.0.experts.values"
    _rewrite(folder, lambda t: t.update({name: tables[name]}))
    refused(folder, CheckpointError, "is missing")


@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_a_pickle_instead_of_safetensors_is_not_opened(name: str, folder: Path) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / name)
    refused(folder, CheckpointError, f"{name}: is a pickle, which can run code when it is opened; convert it")


def test_a_pickle_under_a_safetensors_name_is_not_opened(folder: Path) -> None:
    torch.save(load((folder / "model.safetensors").read_bytes()), folder / "model.safetensors")
    refused(
        folder,
        CheckpointError,
        "model.safetensors: is a pickle, which can run code when it is opened, expected a safetensors",
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"", "is not a safetensors file, or is truncated (0 bytes)"),
        (lambda data: data[:-5], "is the file truncated?"),
        (lambda data: data[:50], "is not a safetensors file, or is truncated (50 bytes)"),
        (lambda data: data + b"more", "is the file truncated?"),
        (lambda data: (2**60).to_bytes(8, "little") + data[8:], "is not a safetensors file"),
        (lambda data: data.replace(b'"dtype"', b'"dtybe"', 1), "its safetensors header is damaged"),
    ],
)
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], message: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, CheckpointError, message)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(
        folder,
        CheckpointError,
        "checkpoint: holds no weights, expected model.safetensors or model.safetensors.index.json or pytorch_model.bin",
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", CheckpointError, "nowhere: is not a folder; expected a folder with config.json")


def test_a_configuration_for_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": 4}))
    refused(folder, CheckpointError, "expected")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "tokenizer.json: is not a tokenizer ("),
        (None, "tokenizer.json: its highest token id is 4095, expected at most 96"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(content: bytes | None, message: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content or (STDLIB_MINI / "tokenizer.json").read_bytes())
    refused(folder, CheckpointError, message)


def test_weights_that_are_a_folder_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, CheckpointError, "model.safetensors: cannot be read at byte 0 (Is a directory)")


def test_a_head_dim_that_the_attention_operator_does_not_take_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": 8}))

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".self_attn." in name:
                tensors[name] = (tensor[:, :32] if "o_proj" in name else tensor[: len(tensor) // 2]).contiguous()

    _rewrite(folder, halve)
    refused(folder, ConfigError, "head_dim is 8, expected a multiple of 16")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json"],
)
def test_the_error_for_a_git_lfs_pointer_says_what_it_is(name: str, folder: Path) -> None:
    if name.startswith(("model", "pytorch")):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    refused(folder, CheckpointError, f"{name}: is a Git LFS pointer, expected the file itself; run `git lfs pull`")


def test_the_error_for_a_shard_that_is_a_git_lfs_pointer_says_so(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, CheckpointError, "model-1.safetensors: is a Git LFS pointer")


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_model.safetensors", "is a LoRA adapter, not a model; merge it into its base model (PEFT"),
        ("adapter_model.bin", "is a LoRA adapter, not a model; merge it into its base model (PEFT"),
        (
            "consolidated.00.pth",
            "is in the format of the model's authors (Meta, Mistral), expected Hugging Face's format",
        ),
        ("consolidated.safetensors", "is in the format of the model's authors (Meta, Mistral), expected Hugging"),
        ("tf_model.h5", "holds TensorFlow's weights; load them with from_tf=True"),
        ("flax_model.msgpack", "holds Flax's weights; load them with from_flax=True"),
        ("small-Q4_K_M.gguf", "is in llama.cpp's format, which is usually quantized; pass the checkpoint it was"),
        ("decoder.onnx", "is an ONNX graph, expected a checkpoint; pass the checkpoint it was exported from"),
        (
            "model-00001-of-00002.safetensors",
            "has a name that the exporter does not read; rename it to model.safetensors",
        ),
        ("checkpoint.pt", "is a pickle, which can run code when it is opened; convert it to model.safetensors"),
    ],
)
def test_weights_of_another_format_are_explained(name: str, message: str, with_config: bool, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    if not with_config:
        (folder / "config.json").unlink()
    refused(folder, CheckpointError, f"{name}: {message}")


def test_other_files_beside_weights_do_not_matter(folder: Path) -> None:
    for name in ("tf_model.h5", "adapter_model.bin", "decoder.onnx", "original.gguf"):
        (folder / name).write_bytes(b"not read")
    with open_checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.files] == ["config.json", "model.safetensors"]


def test_a_model_whose_logits_are_infinite_is_refused(tmp_path: Path) -> None:
    model = random_model(CONFIGS["mole"])
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(1e38)
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="checkpoint: the model computes logits that float32 cannot hold"):
        export(folder, tmp_path / "bundle", experts_dtype="float32")
    assert not (tmp_path / "bundle").exists()
