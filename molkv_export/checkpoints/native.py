"""This project's own checkpoint format for MoLE and MoLKV.

config.json has the fields of a `ModelConfig`, and tensors have the reference model's names. As in Hugging Face's
format, config.json may also have the token ids of generation_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from molkv_bundle import CheckpointError, LookupExpertConfig, model_config
from molkv_export.checkpoints.checkpoint import (
    LM_HEAD,
    Contents,
    ParameterSource,
    check_count,
    generation_fields,
    without_generation,
)
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.weights import Weights
from molkv_export.modeling import Form, ReferenceModel

EXPECTED = 'model_type "molkv" or "mole" without architectures (this project\'s own format)'

_FREQUENCIES = re.compile(r"(.+\.)?rotary_emb\.inv_freq")
# Allowed error, in float32 epsilons. In libraries that compute powers in float32, the error is up to 10 for bases up to
# 1e7.
_FLOAT32_STEPS = 32


def tensors_to_save(model: ReferenceModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name; a tied LM head is left out, since it is the embedding."""
    tied = model.config.tie_word_embeddings
    return {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == LM_HEAD)}


def matches(fields: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is in this format; see `Reader`."""
    return fields.get("architectures") is None and fields.get("model_type") in (None, "molkv", "mole")


def read_folder(folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
    """Open a checkpoint in this format; see `Reader`."""
    path = folder / CONFIG
    config = lookup_expert_config(without_generation(fields), path)
    generation = generation_fields(fields, config.vocab_size, path)
    weights = open_weights()
    form: Form = "lookup" if any(name.endswith(".experts.values") for name in weights.names) else "training"
    check_expert_count(weights, config, form)

    def ignores(name: str) -> bool:
        return follows_from_config(name, weights, config, CONFIG)

    return Contents(config, form, weights, ParameterSource, ignores, generation)


def lookup_expert_config(fields: Mapping[str, Any], path: Path) -> LookupExpertConfig:
    """Return the checked configuration of a MoLE or MoLKV model; messages name the file `path`.

    Raises:
        ConfigError: A field is missing, unknown or has an impossible value.
    """
    config = model_config(fields, path)
    assert isinstance(config, LookupExpertConfig)  # other values of `model_type` are not read here
    return config


def check_expert_count(weights: Weights, config: LookupExpertConfig, form: Form) -> None:
    """Refuse an impossible number of layers or expert networks before a model of that size is created.

    Raises:
        CheckpointError: There are fewer tensors than layers, or fewer than expert networks.
    """
    check_count(weights, "num_hidden_layers", config.num_hidden_layers)
    if form == "training":
        check_count(weights, "num_experts", config.num_experts * len(config.layers_with_experts))


def follows_from_config(name: str, weights: Weights, config: LookupExpertConfig, source: str) -> bool:
    """Return whether a tensor can be ignored because it holds the RoPE frequencies, which follow from `rope_theta`.

    Old versions of Llama's code save these frequencies in checkpoints.

    Args:
        name: The tensor's name.
        weights: The tensors of the checkpoint.
        config: The model's configuration.
        source: The name of the configuration's file, for messages.

    Raises:
        CheckpointError: The tensor holds other frequencies, so the model has another RoPE.
    """
    if not _FREQUENCIES.fullmatch(name):
        return False
    half = config.head_dim // 2
    weights.check(name, (half,), source)
    found = weights.read(name, 0, half, 0, 1)
    exact = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    dtype = torch.finfo(found.dtype)
    relative = dtype.eps / 2 + _FLOAT32_STEPS * torch.finfo(torch.float32).eps
    wrong = (found.double() - exact).abs() > relative * exact + dtype.smallest_normal * dtype.eps
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise CheckpointError(
            f"{weights.path_of(name)}: tensor {name!r} holds {found[index].item():.6g} at index {index}, expected "
            f"{exact[index].item():.6g} by rope_theta {config.rope_theta:g} of {source}; a model with a scaled RoPE "
            "cannot be exported"
        )
    return True
