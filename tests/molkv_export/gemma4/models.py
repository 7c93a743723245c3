"""Small Gemma 4 models with random weights, made and saved by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SLIDING, FULL = "sliding_attention", "full_attention"
PATTERN = [SLIDING, SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL]

# Layers 4 and 5 share the cache of layer 3, and layer 6 that of layer 2.
BASE: dict[str, Any] = {
    "vocab_size": 97,
    "vocab_size_per_layer_input": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "final_logit_softcapping": 10.0,
    "layer_types": PATTERN,
}
_ALL_FULL = {"layer_types": [FULL] * 3, "num_hidden_layers": 3, "num_kv_shared_layers": 1}


def _rope(sliding_theta: float, full_theta: float, part: float) -> dict[str, Any]:
    return {
        SLIDING: {"rope_type": "default", "rope_theta": sliding_theta},
        FULL: {"rope_type": "proportional", "rope_theta": full_theta, "partial_rotary_factor": part},
    }


# Each choice that a configuration can make is in at least one of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no-sharing": {
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": None,
        "num_key_value_heads": 2,
    },
    "long-window": {"sliding_window": 512, "num_key_value_heads": 2, "use_double_wide_mlp": False},
    "one-position": {"sliding_window": 1, "rms_norm_eps": 1e-3},
    "all-full": {**_ALL_FULL, "head_dim": 16},
    "default-types": {"layer_types": None, "num_kv_shared_layers": 0},  # the sixth layer and the last one are full
    "one-shared": {"num_kv_shared_layers": 1, "final_logit_softcapping": 30.0, "global_head_dim": 128},
    "most-shared": {
        "num_kv_shared_layers": 4,
        "num_key_value_heads": 4,
        "layer_types": [FULL, SLIDING, FULL, *PATTERN[3:]],
    },
    "rotation": {"rope_parameters": _rope(500.0, 3000.0, 0.5), "tie_word_embeddings": False},
    "same-heads": {
        "hidden_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 48,
        "global_head_dim": 48,
        "hidden_size_per_layer_input": 16,
        "rope_parameters": _rope(10_000.0, 1_000_000.0, 1.0),
    },
}

Model = Any  # of transformers
Tensors = dict[str, torch.Tensor]


def text_model(variant: str = "base", seed: int = 0, **changes: Any) -> Model:
    """Make transformers' text model with random weights."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    model = Gemma4ForCausalLM(Gemma4TextConfig(**{**BASE, **VARIANTS[variant], **changes})).eval()
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model: Model, seed: int) -> None:
    """Set weights that are large enough for each part to change the logits, and small enough for small rounding errors.

    Scores are not scaled, so the norms of queries must be small. Each branch adds less than it finds.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() < 2 else noise / parameter.shape[-1] ** 0.5)
        if name.endswith("q_norm.weight"):
            parameter.mul_(0.25)
        if ".post_" in name:
            parameter.mul_(0.3)
        if name.endswith("embed_tokens_per_layer.weight"):
            parameter.mul_(model.config.get_text_config().num_hidden_layers ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.copy_(0.7 + 0.4 * torch.rand(1, generator=generator))


def save_text_model(folder: Path, variant: str = "base", **changes: Any) -> Model:
    """Write a text-only folder, and return the model."""
    model = text_model(variant, **changes)
    model.save_pretrained(folder)
    return model


def save_multimodal_model(folder: Path) -> Model:
    """Write a multimodal folder like the published ones, and return the model.

    It is in bfloat16 and in several files. It has keys and values of layers that share those of another layer, which
    are not used, and which transformers does not write.
    """
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}
    audio = {**sizes, "subsampling_conv_channels": (4, 4), "output_proj_dims": 16}
    special = ("image", "audio", "boi", "eoi", "boa", "video")
    ids = {f"{name}_token_id": 80 + index for index, name in enumerate(special)}
    config = Gemma4Config(text_config=BASE, vision_config=vision, audio_config=audio, eoa_token_index=90, **ids)
    model = Gemma4ForConditionalGeneration(config).eval()
    randomize(model, seed=1)
    model.bfloat16().save_pretrained(folder, max_shard_size="200KB")
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    unused = {
        f"model.language_model.layers.{layer}.self_attn.{name}.weight": torch.full(shape, torch.nan)
        for layer in (4, 5, 6)
        for name, shape in {"k_proj": (32, 64), "v_proj": (32, 64), "k_norm": (32,)}.items()
    }
    save_file({**load_file(folder / first), **unused}, folder / first)
    index["weight_map"] |= dict.fromkeys(unused, first)
    index_file.write_text(json.dumps(index))
    return model


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of config.json."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Change the tensors of a folder with one file of weights."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
