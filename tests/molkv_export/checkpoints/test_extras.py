"""Checkpoints with extra tensors or other names: harmless ones are accepted, errors explain the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load, save_file

from molkv_bundle import CheckpointError
from molkv_export.families import open_checkpoint
from tests.models import CONFIGS, lookup_form, random_model, save_checkpoint
from tests.molkv_export.checkpoints.published import (
    Tensors,
    published_config,
    table_tensors,
    training_tensors,
    write_folder,
)

LAYERS = range(CONFIGS["molkv"].num_hidden_layers)


def _native(folder: Path, form: str) -> Tensors:
    model = random_model(CONFIGS["molkv"])
    save_checkpoint(lookup_form(model) if form == "lookup" else model, folder)
    return load((folder / "model.safetensors").read_bytes())


def _published(folder: Path, form: str) -> Tensors:
    config = msgspec.structs.replace(CONFIGS["mole"], expert_intermediate_size=48)
    tensors = training_tensors(random_model(config))
    tensors = table_tensors(tensors, config) if form == "lookup" else tensors
    write_folder(folder, published_config(config), tensors)
    return tensors


def _one_file(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / "model.safetensors")


def _torch_file(folder: Path, tensors: Tensors) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def _two_files(folder: Path, tensors: Tensors) -> None:
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _frequencies(dtype: torch.dtype, theta: float = 10000.0, half: int = 8) -> torch.Tensor:
    """Compute the buffer like transformers, in float32, and store it in a dtype."""
    return (1.0 / theta ** (torch.arange(0, 2 * half, 2).float() / (2 * half))).to(dtype)


def _buffers(frequencies: torch.Tensor) -> Tensors:
    return {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone() for layer in LAYERS}


@pytest.mark.parametrize("write", [_one_file, _torch_file, _two_files])
@pytest.mark.parametrize("form", ["training", "lookup"])
@pytest.mark.parametrize("family", [_native, _published])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_additions_of_wrappers_and_old_llama_code_are_accepted(
    prefix: str, family: Callable[..., Tensors], form: str, write: Callable[..., None], tmp_path: Path
) -> None:
    plain, wrapped = tmp_path / "plain", tmp_path / "wrapped"
    family(plain, form)
    tensors = family(wrapped, form)
    extras = {**_buffers(_frequencies(torch.float32)), "model.rotary_emb.inv_freq": _frequencies(torch.float16)}
    write(wrapped, {prefix + name: tensor for name, tensor in {**tensors, **extras}.items()})
    with open_checkpoint(plain) as expected, open_checkpoint(wrapped) as found:
        assert found.form == expected.form == form
        assert found.parameters == expected.parameters
        for name in expected.parameters:
            assert torch.equal(found.stored(name), expected.stored(name))


def _opens(folder: Path) -> None:
    with open_checkpoint(folder):
        pass


@pytest.mark.parametrize("theta", [500.0, 10000.0, 500000.0, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_frequencies_may_be_rounded_to_their_dtype(dtype: torch.dtype, theta: float, tmp_path: Path) -> None:
    tensors = _native(tmp_path / "c", "training")
    config = tmp_path / "c" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": theta, "head_dim": 128}))
    for layer in LAYERS:
        for part in ("q_proj", "k_proj", "v_proj"):
            rows = 128 * (4 if part == "q_proj" else 2)
            tensors[f"model.layers.{layer}.self_attn.{part}.weight"] = torch.ones(rows, 64)
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.ones(64, 512)
    right = _frequencies(dtype, theta, 64)
    _one_file(tmp_path / "c", {**tensors, **_buffers(right)})
    _opens(tmp_path / "c")
    step = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for wrong in (right / 8, right * (1 + step), _frequencies(dtype, theta * 1.5, 64)):
        _one_file(tmp_path / "c", {**tensors, **_buffers(wrong.to(dtype))})
        with pytest.raises(CheckpointError, match=r"rotary_emb.inv_freq' holds .*, expected .* by rope_theta"):
            _opens(tmp_path / "c")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (_frequencies(torch.float32)[:7], "inv_freq' has shape [7], expected [8] by config.json"),
        (_frequencies(torch.float64), "inv_freq' has dtype F64, expected one of BF16, F16, F32"),
        (_frequencies(torch.float32) * torch.nan, "inv_freq' holds NaN or infinite values"),
    ],
)
def test_different_frequencies_are_refused(extra: torch.Tensor, message: str, tmp_path: Path) -> None:
    tensors = _native(tmp_path / "c", "training")
    _one_file(tmp_path / "c", {**tensors, **_buffers(extra)})
    with pytest.raises(CheckpointError) as caught:
        _opens(tmp_path / "c")
    assert message in str(caught.value)


def _renamed(old: str, new: str) -> Callable[[str], str]:
    return lambda name: new + name.removeprefix(old) if name.startswith(old) else name


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: f"transformer.{name}", "; all tensors have the prefix 'transformer.', expected none"),
        (_renamed("model.", "transformer."), "tensors have the prefix 'transformer.', expected 'model.'"),
        (_renamed("model.", ""), "; tensors lack the prefix 'model.'"),
        (
            lambda name: name if "0" in name else f"module.{name}",
            "; some tensors have the prefix 'module.', expected none",
        ),
        (lambda name: name.replace("embed_tokens", "wte"), r"\(total: 1\), expected shape \[97, 64\] by config.json"),
    ],
)
@pytest.mark.parametrize("form", ["training", "lookup"])
@pytest.mark.parametrize("family", [_native, _published])
def test_the_error_explains_names_with_an_unknown_prefix(
    family: Callable[..., Tensors], form: str, rename: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    tensors = family(tmp_path / "c", form)
    _one_file(tmp_path / "c", {rename(name): tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=rf"tensor '.*' is missing.*{message}$"):
        _opens(tmp_path / "c")


@pytest.mark.parametrize("write", [_one_file, _torch_file])
def test_the_error_for_float8_lists_the_supported_dtypes(write: Callable[..., None], tmp_path: Path) -> None:
    tensors: dict[str, Any] = _native(tmp_path / "c", "training")
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    write(tmp_path / "c", {**tensors, "model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"dtype (F8_E4M3|float8_e4m3fn), expected one of BF16, F16, F32$"):
        _opens(tmp_path / "c")
