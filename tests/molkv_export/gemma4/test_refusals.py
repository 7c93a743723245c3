"""Folders that are not Gemma 4 E2B or E4B, or are damaged, are refused with a message of one line."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from molkv_bundle import CheckpointError, ConfigError, MolkvError
from molkv_export.families import open_checkpoint
from tests.molkv_export.gemma4.models import FULL, SLIDING, Tensors, edit_config, edit_tensors

Folders = Callable[[str], Path]

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "routed experts": ({"enable_moe_block": True}, "enable_moe_block is true, expected false: .* use E2B or E4B"),
    "keys as values": ({"attention_k_eq_v": True}, "attention_k_eq_v is true, expected false"),
    "bidirectional": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is .all., expected null"),
    "biases": ({"attention_bias": True}, "attention_bias is true, expected false"),
    "activation": ({"hidden_activation": "silu"}, "hidden_activation is .silu., expected .gelu_pytorch_tanh."),
    "no embeddings": ({"hidden_size_per_layer_input": 0}, "is 0, expected a model with per-layer embeddings"),
    "vocabulary": ({"vocab_size_per_layer_input": 98}, r"vocab_size_per_layer_input is 98, expected vocab_size \(97\)"),
    "quantized": ({"quantization_config": {"bits": 2}}, "quantization_config is set, .* q4_0-unquantized"),
    "rope type": (
        {"rope_parameters": {SLIDING: {"rope_type": "yarn", "rope_theta": 1.0}, FULL: {}}},
        "rope_parameters.sliding_attention.rope_type is .yarn., expected .default.",
    ),
    "rope missing": (
        {"rope_parameters": {SLIDING: {}}},
        "rope_parameters.sliding_attention is .*, expected rope_theta",
    ),
    "rope no object": ({"rope_parameters": 3}, "rope_parameters.sliding_attention is null, expected an object"),
    "rope factor": (
        {"rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 1e4, "factor": 8.0}}},
        "factor is 8.0, expected no such field: models with a scaled RoPE",
    ),
    "layer config": ({"per_layer_config": {"2": {"head_dim": 64}}}, "per_layer_config is .*: 2, 6"),
    "heads of a layer": (
        {"per_layer_config": {"2": {"head_dim": 64}, "6": {"head_dim": 64, "num_key_value_heads": 2}}},
        "per_layer_config is .*, expected the same head_dim, and nothing else",
    ),
    "layer types": ({"layer_types": [FULL]}, r"layer_types: found 1 layers, expected num_hidden_layers \(7\)"),
    "layer type": ({"layer_types": ["chunked_attention"]}, "layer_types is .*, expected a list of"),
    "all shared": ({"num_kv_shared_layers": 7}, "num_kv_shared_layers: found 7, expected 0 to 6"),
    "no source": ({"num_kv_shared_layers": 5}, "no layer before layer 2 has full_attention"),
    "window": ({"sliding_window": 0}, "sliding_window: found 0, expected a number from 1"),
    "key heads": ({"num_key_value_heads": 3}, r"expected a multiple of num_key_value_heads \(3\)"),
    "no size": ({"hidden_size": None}, "missing required field `hidden_size`"),
    "layers as text": ({"num_hidden_layers": "7"}, "Expected `int`"),
    "soft cap": (
        {"final_logit_softcapping": -1.0},
        "final_logit_softcapping: found -1.0, expected a number of at least",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_configurations_are_refused(name: str, folders: Folders, tmp_path: Path) -> None:
    fields, message = CONFIGS[name]
    folder = Path(shutil.copytree(folders("base"), tmp_path / "folder"))
    edit_config(folder, lambda config: config.update(fields))
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(folder)
    assert re.search(message, str(caught.value))
    assert str(caught.value).startswith(str(folder / "config.json"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_text_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("multimodal"), tmp_path / "folder"))
    edit_config(folder, lambda config: config.pop("text_config"))
    with pytest.raises(ConfigError, match="text_config is null, expected an object"):
        open_checkpoint(folder)


@pytest.mark.parametrize("part", ["model", "text model"])
def test_the_quantized_model_is_refused(part: str, folders: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("multimodal"), tmp_path / "folder"))

    def edit(config: dict[str, Any]) -> None:
        fields = config if part == "model" else config["text_config"]
        fields["quantization_config"] = {"quant_method": "other"}

    edit_config(folder, edit)
    with pytest.raises(ConfigError, match=r"config\.json: quantization_config is set"):
        open_checkpoint(folder)


_HUGE = 10**400
ODD: tuple[Any, ...] = (None, 0, -1, 2.5, 10**30, _HUGE, True, "x", [], {}, [1], {"a": 1}, {"2": {"head_dim": [1]}})


def _places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*place, name)
        yield from _places(inner, (*place, name))


def test_odd_values_are_accepted_or_refused_in_one_line(folders: Folders, tmp_path: Path) -> None:
    """Every field of config.json gets every odd value."""
    folder = Path(shutil.copytree(folders("base"), tmp_path / "folder"))
    sound = json.loads((folder / "config.json").read_text())
    refused = []
    for place in _places(sound):
        for value in ODD:
            fields = copy.deepcopy(sound)
            part = fields
            for name in place[:-1]:
                part = part[name]
            part[place[-1]] = value
            (folder / "config.json").write_text(json.dumps(fields))
            try:
                open_checkpoint(folder).close()
            except MolkvError as error:
                refused.append(str(error))
    assert len(refused) > 250
    assert not any("\n" in message for message in refused)


TABLE = "model.embed_tokens_per_layer.weight"


def _narrow(tensors: Tensors) -> None:
    tensors[TABLE] = tensors[TABLE][:, 32:].clone()


TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no table": (lambda tensors: tensors.pop(TABLE), rf"'{TABLE}' is missing .*, expected shape \[97, 224\]"),
    "narrow table": (_narrow, rf"'{TABLE}' has shape \[97, 192\], expected \[97, 224\]"),
    "unknown": (
        lambda tensors: tensors.update({"model.layers.0.router.weight": torch.zeros(2)}),
        "'model.layers.0.router.weight' is not part of the model",
    ),
    "keys of a layer that has them": (
        lambda tensors: tensors.pop("model.layers.3.self_attn.k_proj.weight"),
        "'model.layers.3.self_attn.k_proj.weight' is missing",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_other_tensors_are_refused(name: str, folders: Folders, tmp_path: Path) -> None:
    edit, message = TENSORS[name]
    folder = Path(shutil.copytree(folders("base"), tmp_path / "folder"))
    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)
