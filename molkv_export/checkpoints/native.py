"""Our own family: config.json is a `ModelConfig`, tensors are named as the reference model names them.

As in Hugging Face's, config.json may also name the token ids of generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from molkv_export.checkpoints.checkpoint import (
    CONFIG,
    LM_HEAD,
    Checkpoint,
    Place,
    generation_fields,
    model_config,
    without_generation,
)
from molkv_export.checkpoints.weights import Weights
from molkv_export.modeling import Form, LookupExpertForCausalLM

EXPECTED = 'model_type "molkv" or "mole" without architectures (ours)'


def tensors_to_save(model: LookupExpertForCausalLM) -> dict[str, torch.Tensor]:
    """Give the tensors of a checkpoint: the parameters by name, a tied LM head only once, as the embedding."""
    tied = model.config.tie_word_embeddings
    return {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == LM_HEAD)}


def matches(fields: Mapping[str, Any]) -> bool:
    """See `Family`."""
    return fields.get("architectures") is None and fields.get("model_type") in (None, "molkv", "mole")


def open_folder(folder: Path, fields: Mapping[str, Any]) -> Checkpoint:
    """See `Family`."""
    path = folder / CONFIG
    config = model_config(without_generation(fields), path)
    generation = generation_fields(fields, config.vocab_size, path)
    weights = Weights(folder)
    form: Form = "lookup" if any(name.endswith(".experts.values") for name in weights.names) else "training"
    return Checkpoint(folder, config, form, weights, Place, generation)
