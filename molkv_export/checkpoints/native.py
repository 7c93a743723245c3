"""Our own family: config.json is a `ModelConfig`, tensors are named as the reference model names them.

As in Hugging Face's, config.json may also name the token ids of generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from molkv_bundle import LookupExpertConfig, model_config
from molkv_export.checkpoints.checkpoint import (
    CONFIG,
    LM_HEAD,
    Contents,
    ParameterSource,
    check_count,
    generation_fields,
    without_generation,
)
from molkv_export.checkpoints.extras import follows_from_config
from molkv_export.checkpoints.weights import Weights
from molkv_export.modeling import Form, ReferenceModel

EXPECTED = 'model_type "molkv" or "mole" without architectures (ours)'


def tensors_to_save(model: ReferenceModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint: the parameters by name, a tied LM head only once, as the embedding."""
    tied = model.config.tie_word_embeddings
    return {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == LM_HEAD)}


def matches(fields: Mapping[str, Any]) -> bool:
    """See `Reader`."""
    return fields.get("architectures") is None and fields.get("model_type") in (None, "molkv", "mole")


def read_folder(folder: Path, fields: Mapping[str, Any]) -> Contents:
    """See `Reader`."""
    path = folder / CONFIG
    config = lookup_expert_config(without_generation(fields), path)
    generation = generation_fields(fields, config.vocab_size, path)
    weights = Weights(folder)
    form: Form = "lookup" if any(name.endswith(".experts.values") for name in weights.names) else "training"
    check_expert_count(weights, config, form)

    def ignores(name: str) -> bool:
        return follows_from_config(name, weights, config, CONFIG)

    return Contents(config, form, weights, ParameterSource, ignores, generation)


def lookup_expert_config(fields: Mapping[str, Any], path: Path) -> LookupExpertConfig:
    """Check the fields of a MoLE or MoLKV model's configuration; `path` is for messages.

    Raises:
        ConfigError: A field is missing, unknown or has an impossible value.
    """
    config = model_config(fields, path)
    assert isinstance(config, LookupExpertConfig)  # `model_type` is of one of these two families
    return config


def check_expert_count(weights: Weights, config: LookupExpertConfig, form: Form) -> None:
    """Refuse an impossible number of expert networks before a model is made of it.

    Raises:
        CheckpointError: There are fewer tensors.
    """
    if form == "training":
        check_count(weights, "num_experts", config.num_experts * len(config.layers_with_experts))
