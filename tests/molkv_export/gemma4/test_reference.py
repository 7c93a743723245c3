"""Our reference model computes what transformers' model computes, on ten configurations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from molkv_bundle import Gemma4Config
from molkv_export.checkpoints import Checkpoint
from molkv_export.families import open_checkpoint
from molkv_export.source.arithmetic import Float64
from molkv_export.source.model import SourceModel
from tests.molkv_export.gemma4.models import BASE, FULL, SLIDING, VARIANTS, Model, edit_config

IDS = np.random.default_rng(3).integers(0, 97, 40)  # five times the window of sliding attention

Folders = Callable[[str], Path]


def oracle(folder: Path) -> Model:
    """Load a text-only folder in transformers."""
    from transformers import Gemma4ForCausalLM

    return Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def oracle_logits(model: Model) -> Tensor:
    logits: Tensor = model(torch.from_numpy(IDS)[None], use_cache=False).logits[0]
    return logits


def our_logits(checkpoint: Checkpoint, *, in_float64: bool = False) -> Tensor:
    model = SourceModel(checkpoint)
    [hidden] = model.hidden([IDS], in_float64=in_float64)
    return torch.from_numpy(next(model.head(hidden, len(IDS), in_float64=in_float64)))


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative L2 error."""
    return float((found.double() - expected).norm() / expected.double().norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_is_the_model_of_transformers(variant: str, folders: Folders) -> None:
    expected = oracle_logits(oracle(folders(variant)))
    with open_checkpoint(folders(variant)) as checkpoint:
        assert distance(our_logits(checkpoint), expected) < 1e-5
    assert expected.std() > 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_are_closer_in_float64(variant: str, folders: Folders) -> None:
    """What is left comes from three roundings to float32: transformers' RoPE frequencies and sqrt(d), and our logits.

    At position 39, a frequency that is wrong by 3e-8 makes an angle that is wrong by 1e-6.
    """
    model = oracle(folders(variant)).double()
    with Float64():
        expected = oracle_logits(model)
    assert expected.dtype == torch.float64
    with open_checkpoint(folders(variant)) as checkpoint:
        assert distance(our_logits(checkpoint, in_float64=True), expected) < 4e-7


def test_the_multimodal_folder_holds_the_text_model(folders: Folders) -> None:
    from transformers import Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration.from_pretrained(folders("multimodal"), dtype=torch.float32).eval()
    expected = oracle_logits(model)
    with open_checkpoint(folders("multimodal")) as checkpoint:
        assert distance(our_logits(checkpoint), expected) < 1e-5
        assert checkpoint.generation["eos_token_id"] == 1
        assert checkpoint.stored("model.layers.3.experts.values").dtype == torch.bfloat16
    assert len([*folders("multimodal").glob("*.safetensors")]) >= 2


def _read(folder: Path) -> Gemma4Config:
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint.config, Gemma4Config)
        return checkpoint.config


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_spellings_of_the_size_of_heads_are_read(variant: str, folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(variant), tmp_path / "folder")
    expected = {**BASE, **VARIANTS[variant]}["global_head_dim"]
    assert _read(folder).global_head_dim == expected

    def older(fields: dict[str, Any]) -> None:
        assert fields.pop("per_layer_config") is not None
        fields["global_head_dim"] = expected

    edit_config(folder, older)
    assert _read(folder) == _read(folders(variant))


def test_fields_that_are_not_set_have_the_values_of_transformers(folders: Folders, tmp_path: Path) -> None:
    """Compare with transformers' configuration of an empty object, for the fields that the reader has defaults for."""
    from transformers import Gemma4TextConfig

    folder = shutil.copytree(folders("default-types"), tmp_path / "folder")
    theirs = Gemma4TextConfig().to_dict()
    optional = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "sliding_window", "rope_parameters")
    edit_config(folder, lambda fields: fields.update(dict.fromkeys(optional)))
    config = _read(folder)
    for name in optional[:-1]:
        assert getattr(config, name) == theirs[name]
    rope = theirs["rope_parameters"]
    assert config.sliding_rope_theta == rope[SLIDING]["rope_theta"]
    assert config.full_rope_theta == rope[FULL]["rope_theta"]
    assert config.partial_rotary_factor == rope[FULL]["partial_rotary_factor"]


@pytest.mark.parametrize("types", [None, [*[SLIDING] * 5, FULL, SLIDING]], ids=["default", "sliding last"])
def test_the_last_layer_has_full_attention(types: list[str] | None, folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("default-types"), tmp_path / "folder")
    edit_config(folder, lambda fields: fields.update(layer_types=types))
    assert _read(folder) == _read(folders("default-types"))
    assert _read(folder).layer_types == (*[SLIDING] * 5, FULL, FULL)


CHANGES: dict[str, dict[str, Any]] = {
    "window 7": {"sliding_window": 7},
    "window 9": {"sliding_window": 9},
    "sliding theta": {"sliding_rope_theta": 9000.0},
    "full theta": {"full_rope_theta": 900_000.0},
    "rotated part": {"partial_rotary_factor": 0.5},
    "no softcap": {"final_logit_softcapping": 0.0},
    "softcap": {"final_logit_softcapping": 10.1},
    "eps": {"rms_norm_eps": 1e-3},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_reference_is_far_from_the_oracle(change: str, folders: Folders) -> None:
    expected = oracle_logits(oracle(folders("base")))
    with open_checkpoint(folders("base")) as checkpoint:
        checkpoint.config = msgspec.structs.replace(checkpoint.config, **CHANGES[change])
        assert distance(our_logits(checkpoint), expected) > 1e-4
