"""Small models that are fast to make, and the folder of the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import torch
from safetensors.torch import save_file

from molkv_bundle import LookupExpertConfig, RowDtype
from molkv_export.checkpoints.native import lookup_expert_config, tensors_to_save
from molkv_export.families import reference_model
from molkv_export.modeling import ReferenceModel

STDLIB_MINI = Path(__file__).parent.parent / "examples" / "stdlib-mini"

_BASE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "num_experts": 3,
    "expert_intermediate_size": 24,
}
_MOLKV = {**_BASE, "model_type": "molkv", "expert_key_size": 8, "expert_window": 5}

# Each choice that a configuration can make is in at least one of them.
CONFIGS: dict[str, LookupExpertConfig] = {
    name: lookup_expert_config(fields, Path("config.json"))
    for name, fields in {
        "molkv": {**_MOLKV, "tie_word_embeddings": True},
        "molkv-plain": {**_MOLKV, "hidden_act": "gelu", "expert_qk_norm": False, "expert_rope": False},
        "molkv-gated": {**_MOLKV, "expert_gate": "sigmoid", "num_key_value_heads": 4, "head_dim": 32},
        "molkv-some-layers": {**_MOLKV, "expert_layers": [0, 2], "rope_theta": 500.0, "rms_norm_eps": 1e-3},
        "molkv-one-slot": {**_MOLKV, "expert_window": 1, "num_experts": 1, "num_key_value_heads": 1},
        "molkv-wide-window": {**_MOLKV, "expert_window": 64},
        "molkv-square": {**_MOLKV, "expert_key_size": 64},  # keys are as large as values
        "mole": {**_BASE, "model_type": "mole", "hidden_act": "gelu"},
        "dense": {**_BASE, "model_type": "mole", "num_experts": 0},
    }.items()
}

# Names of checkpoints and dtypes of experts: each kind of checkpoint in one dtype, and three kinds in every dtype.
KINDS: list[tuple[str, RowDtype]] = [
    *((name, "float16") for name in (*CONFIGS, "molkv/lookup", "mole/lookup")),
    *((name, dtype) for name in ("molkv", "molkv-gated", "mole") for dtype in get_args(RowDtype) if dtype != "float16"),
]


def random_model(config: LookupExpertConfig, seed: int = 0) -> ReferenceModel:
    """Make a training-form model with weights so large that each part of it changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = reference_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False).eval()


def lookup_form(model: ReferenceModel) -> ReferenceModel:
    """Return the lookup form of a training-form model: its networks are evaluated for each token id."""
    tables = reference_model(model.config, "lookup")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".experts." not in name}
    with torch.no_grad():
        for layer, rows in model.records(torch.arange(model.config.vocab_size)).layers.items():
            state |= {f"model.layers.{layer}.experts.{name}s": row for name, row in rows.items()}
    tables.load_state_dict(state)
    return tables.requires_grad_(False).eval()


def save_checkpoint(model: ReferenceModel, folder: Path) -> Path:
    """Write a model as a checkpoint folder without a tokenizer."""
    folder.mkdir(parents=True)
    save_file(tensors_to_save(model), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(model.config))
    return folder
