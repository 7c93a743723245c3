"""Write small models in the format of the published MoLE checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from molkv_bundle import LookupExpertConfig
from molkv_export.modeling import ReferenceModel

Tensors = dict[str, Tensor]


def published_config(config: LookupExpertConfig, **others: Any) -> dict[str, Any]:
    """Return the config fields that transformers writes for a class derived from Llama."""
    return {
        "architectures": ["MoleForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_experts": config.num_experts,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": None,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
        "transformers_version": "4.44.2",
        "use_cache": True,
        "vocab_size": config.vocab_size,
        **others,
    }


def training_tensors(model: ReferenceModel) -> Tensors:
    """Return the tensors of the training form."""
    tensors = {
        "model.embed_tokens.weight": model.model.embed_tokens.weight,
        "model.norm.weight": model.model.norm.weight,
        "lm_head.weight": model.lm_head.weight,
    }
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for index, layer in enumerate(model.model.layers):
        at = f"model.layers.{index}."
        tensors[f"{at}input_layernorm.weight"] = layer.input_layernorm.weight
        tensors[f"{at}post_attention_layernorm.weight"] = layer.post_attention_layernorm.weight
        tensors[f"{at}expert_layernorm.weight"] = layer.experts.norm.weight
        tensors[f"{at}router.weight"] = layer.expert_mixer.router.weight
        for part in "qkvo":
            tensors[f"{at}self_attn.{part}_proj.weight"] = getattr(layer.self_attn, f"{part}_proj").weight
        networks = {"mlp": layer.mlp, **{f"experts.{n}": expert for n, expert in enumerate(layer.experts.networks)}}
        for name, network in networks.items():
            tensors[f"{at}{name}.up_proj.weight"] = network.up_proj.weight
            tensors[f"{at}{name}.down_proj.weight"] = network.down_proj.weight
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def table_tensors(training: Tensors, config: LookupExpertConfig) -> Tensors:
    """Re-parameterize: evaluate the experts for every id into one table, with everything in float16."""
    x = training["model.embed_tokens.weight"]
    rows = []
    for index in range(config.num_hidden_layers):
        at = f"model.layers.{index}."
        scale = (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
        normed = x * scale * training[f"{at}expert_layernorm.weight"]
        for n in range(config.num_experts):
            up, down = (training[f"{at}experts.{n}.{part}_proj.weight"] for part in ("up", "down"))
            rows.append(torch.nn.functional.gelu(normed @ up.T) @ down.T)
    dense = {name: t for name, t in training.items() if ".experts." not in name and "expert_layernorm" not in name}
    return {name: t.half() for name, t in {**dense, "model.moe_table.weight": torch.cat(rows, dim=1)}.items()}


def write_folder(folder: Path, fields: dict[str, Any], tensors: Tensors) -> Path:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    save_file(tensors, folder / "model.safetensors")
    return folder
