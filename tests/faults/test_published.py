"""Published folders that contradict themselves, need an unsupported feature, or are not safe, are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load, save_file

from molkv_bundle import CheckpointError, ConfigError, MolkvError
from tests.faults.refusal import refused
from tests.models import CONFIGS
from tests.molkv_export.checkpoints.published import (
    Tensors,
    published_config,
    table_tensors,
    write_folder,
)

EXPERT = "model.layers.1.experts.2.up_proj.weight"
TABLE = "model.moe_table.weight"


@pytest.fixture
def table_folder(folder: Path) -> Path:
    config = msgspec.structs.replace(CONFIGS["mole"], expert_intermediate_size=48)
    tensors = table_tensors(_tensors(folder), config)
    return write_folder(folder.with_name("table"), published_config(config), tensors)


def _tensors(folder: Path) -> Tensors:
    return load((folder / "model.safetensors").read_bytes())


def _set(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling.type is "linear", expected "default"'),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor is 2.0, expected no such field: models with a scaled"),
        ({"rope_scaling": "yarn"}, 'rope_scaling is "yarn", expected an object or null'),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type is "yarn", expected "default"'),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rope_parameters.rope_theta is 500.0, but rope_theta is 10000.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"attention_bias": True}, "attention_bias is true, expected false"),
        ({"mlp_bias": True}, "mlp_bias is true, expected false"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2, expected 1"),
        ({"hidden_act": "gelu_new"}, 'hidden_act is "gelu_new", expected "silu" or "gelu"'),
        ({"sliding_window": 64}, "sliding_window is 64, but MoLE has no such field"),
        ({"num_experts": 0}, "num_experts is 0, expected 1 or more"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, expected 1 or more"),
        ({"head_dim": 0}, "head_dim is 0, expected 1 or more"),
        (
            {"max_position_embeddings": 2**31 - 1},
            "max_position_embeddings: found 2147483647, expected at most 16777216",
        ),
        ({"a\nb": "\x1b[2J" + 200 * "x"}, 'a\\nb is "\\u001b[2Jxxx'),
        ({"num_experts": None}, "missing required field `num_experts`"),
        ({"num_experts": "3"}, "Expected `int`, got `str` - at `$.num_experts`"),
        ({"num_key_value_heads": 3}, "num_attention_heads: found 4, expected a multiple of num_key_value_heads (3)"),
        (
            {"architectures": ["LlamaForCausalLM"]},
            'architectures is ["LlamaForCausalLM"] and model_type is "llama", exp',
        ),
        (
            {"architectures": "MoleForCausalLM"},
            "without architectures (this project's own format) or architectures [\"Mole",
        ),
    ],
)
def test_a_configuration_that_we_do_not_compute_is_refused(fields: dict[str, Any], message: str, folder: Path) -> None:
    _set(folder, **fields)
    refused(folder, ConfigError, f"{folder / 'config.json'}: ")
    refused(folder, ConfigError, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(EXPERT), f"tensor '{EXPERT}' is missing (total: 1), expected shape [48, 64] by config.json"),
        (
            lambda t: t.pop("lm_head.weight"),
            "'lm_head.weight' is missing (total: 1), expected shape [97, 64] by config",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.gate_proj.weight": torch.ones(48, 64)}),
            "gate_proj.weight' is not part of the model",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            "q_proj.bias' is not part of the model",
        ),
        (
            lambda t: t.update({"model.layers.3.router.weight": torch.ones(3, 64)}),
            "layers.3.router.weight' is not part of the model",
        ),
        (
            lambda t: t.update({TABLE: torch.ones(97, 3 * 3 * 64)}),
            f"holds tensors '{TABLE}' (re-parameterized form) and 'model",
        ),
        (lambda t: t.update({EXPERT: t[EXPERT].T.contiguous()}), f"'{EXPERT}' has shape [64, 48], expected [48, 64]"),
        (lambda t: t[EXPERT][0, 0].fill_(torch.nan), f"'{EXPERT}' holds NaN or infinite values"),
    ],
)
def test_training_weights_that_do_not_fit_are_named(
    edit: Callable[[Tensors], object], message: str, folder: Path
) -> None:
    tensors = _tensors(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, CheckpointError, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.update({TABLE: t[TABLE][:96].clone()}),
            f"'{TABLE}' has shape [96, 576], expected [97, 576] by con",
        ),
        (lambda t: t.update({TABLE: t[TABLE][:, 64:].clone()}), f"'{TABLE}' has shape [97, 512], expected [97, 576]"),
        (lambda t: t.pop("model.layers.0.router.weight"), "tensor 'model.layers.0.router.weight' is missing"),
        (lambda t: t[TABLE][7, 300].fill_(torch.inf), f"'{TABLE}' holds NaN or infinite values"),
    ],
)
def test_a_table_that_does_not_fit_is_named(
    edit: Callable[[Tensors], object], message: str, table_folder: Path
) -> None:
    tensors = _tensors(table_folder)
    edit(tensors)
    save_file(tensors, table_folder / "model.safetensors")
    refused(table_folder, CheckpointError, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 10**8}, "tensors, expected at least 300000000 for num_experts of config.json"),
        (
            {"num_hidden_layers": 65536},
            "tensors, expected at least 65536 for num_hidden_layers of config.json",
        ),
        (
            {
                "hidden_size": 2**31 - 2,
                "num_attention_heads": 2**30,
                "num_key_value_heads": 2**30,
                "head_dim": 2**31 - 2,
            },
            "config.json: the model is too large for any memory",
        ),
    ],
)
def test_impossible_sizes_are_refused_at_once(fields: dict[str, Any], message: str, folder: Path) -> None:
    _set(folder, **fields)
    refused(folder, CheckpointError, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_pipe_is_not_waited_for(name: str, folder: Path) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, MolkvError, "it is a device or a pipe")


def test_a_broken_link_is_refused(folder: Path) -> None:
    torch.save(_tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nowhere")
    refused(folder, CheckpointError, "model.safetensors: cannot be opened (No such file or directory)")


def test_an_invalid_end_of_text_token_is_refused(folder: Path) -> None:
    _set(folder, eos_token_id="</s>")
    refused(folder, ConfigError, 'config.json: eos_token_id is "</s>", expected token ids from 0 to 96')
    _set(folder, eos_token_id=[0, 97])
    refused(folder, ConfigError, "config.json: eos_token_id is [0, 97], expected token ids from 0 to 96")
    _set(folder, eos_token_id=0)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0.5}')
    refused(folder, CheckpointError, "generation_config.json: eos_token_id is 0.5, expected token ids from 0 to 96")


def test_a_tied_head_that_differs_from_the_embedding_is_refused(folder: Path) -> None:
    _set(folder, tie_word_embeddings=True)
    refused(folder, CheckpointError, "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', expected eq")


def _index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update({EXPERT: "model-2.safetensors"}), "model-2.safetensors: cannot be opened"),
        (lambda m: m.pop(EXPERT), f"holds tensor '{EXPERT}', but model.safetensors.index.json names no file"),
        (
            lambda m: m.update(more="model-1.safetensors"),
            "'weight_map' names the file model-1.safetensors for tensor 'more'",
        ),
        (
            lambda m: m.update({EXPERT: "../mole/model-1.safetensors"}),
            "expected the name of a .safetensors file in the same folder",
        ),
        (
            lambda m: m.update({EXPERT: "pytorch_model.bin"}),
            "expected the name of a .safetensors file in the same folder",
        ),
        (
            lambda m: m.update({EXPERT: "a\0.safetensors"}),
            "expected the name of a .safetensors file in the same folder",
        ),
        (
            lambda m: m.update({EXPERT: 300 * "x" + ".safetensors"}),
            "expected the name of a .safetensors file in the same folder",
        ),
        (lambda m: m.update({EXPERT: 3}), "Expected `str`, got `int`"),
        (lambda m: m.clear(), "'weight_map' is empty"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    edit: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    weight_map: dict[str, Any] = dict.fromkeys(_tensors(folder), "model-1.safetensors")
    edit(weight_map)
    _index(folder, weight_map)
    refused(folder, CheckpointError, message)
