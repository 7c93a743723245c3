"""Checkpoints with the shapes and names of Gemma 4 E2B and E4B, and with random weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

_PREFIX = "model.language_model."
_SHARD_BYTES = 4 * 10**9
_NUMBERS_AT_A_TIME = 2**24
_BYTES = 2  # of a number in bfloat16
# Beginnings of norms' names, with the mean of their weights. Branches are small beside the residual stream, and scores
# of attention are moderate, as in a trained model.
_NORMS = {"q_norm": 0.25, "post_": 0.3}

SIZES: dict[str, dict[str, Any]] = {
    "E2B": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "full_every": 5,
    },
    "E4B": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 42,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
        "use_double_wide_mlp": False,
        "full_every": 6,
    },
}
_COMMON = {
    "vocab_size": 262_144,
    "vocab_size_per_layer_input": 262_144,
    "num_attention_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_size_per_layer_input": 256,
    "sliding_window": 512,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "enable_moe_block": False,
    "attention_k_eq_v": False,
    "use_bidirectional_attention": None,
    "dtype": "bfloat16",
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    },
}


def write_checkpoint(size: str, folder: Path) -> Path:
    """Write a model of the size "E2B" or "E4B" in bfloat16; return the folder. A checkpoint that is complete stays.

    Tensors are written piece by piece, so the RAM does not depend on the size.
    """
    config = folder / "config.json"
    if config.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    fields = _text_config(size)
    generator = torch.Generator().manual_seed(0)
    shards = list(_shards(dict(_tensors(fields))))
    places: dict[str, str] = {}
    for index, tensors in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(tensors, name)
        with (folder / name).open("wb") as file:
            _write_shard(file, tensors, generator)
    index_text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index_text)
    whole = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": fields}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106, 50]}))
    config.write_text(json.dumps(whole, indent=2))
    return folder


def _text_config(size: str) -> dict[str, Any]:
    fields = {**_COMMON, **SIZES[size], "model_type": "gemma4_text"}
    every = fields.pop("full_every")
    layers = range(1, fields["num_hidden_layers"] + 1)
    fields["layer_types"] = ["full_attention" if layer % every == 0 else "sliding_attention" for layer in layers]
    return fields


def _tensors(fields: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of each tensor."""
    d, vocabulary, count = fields["hidden_size"], fields["vocab_size"], fields["num_hidden_layers"]
    size = fields["hidden_size_per_layer_input"]
    yield f"{_PREFIX}embed_tokens.weight", (vocabulary, d)
    yield f"{_PREFIX}embed_tokens_per_layer.weight", (vocabulary, count * size)
    yield f"{_PREFIX}per_layer_model_projection.weight", (count * size, d)
    yield f"{_PREFIX}per_layer_projection_norm.weight", (size,)
    yield f"{_PREFIX}norm.weight", (d,)
    for layer, kind in enumerate(fields["layer_types"]):
        head = fields["global_head_dim"] if kind == "full_attention" else fields["head_dim"]
        queries, keys = fields["num_attention_heads"] * head, fields["num_key_value_heads"] * head
        shares = layer >= count - fields["num_kv_shared_layers"]
        inner = fields["intermediate_size"] * (2 if shares and fields["use_double_wide_mlp"] else 1)
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, d),
            "self_attn.k_proj": (keys, d),
            "self_attn.v_proj": (keys, d),
            "self_attn.o_proj": (d, queries),
            "self_attn.q_norm": (head,),
            "self_attn.k_norm": (head,),
            "mlp.gate_proj": (inner, d),
            "mlp.up_proj": (inner, d),
            "mlp.down_proj": (d, inner),
            "per_layer_input_gate": (size, d),
            "per_layer_projection": (d, size),
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "pre_feedforward_layernorm": (d,),
            "post_feedforward_layernorm": (d,),
            "post_per_layer_input_norm": (d,),
        }
        for name, shape in shapes.items():
            yield f"{_PREFIX}layers.{layer}.{name}.weight", shape
        yield f"{_PREFIX}layers.{layer}.layer_scalar", (1,)


def _shards(tensors: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    total = 0
    for name, shape in tensors.items():
        size = _BYTES * math.prod(shape)
        if shard and total + size > _SHARD_BYTES:
            yield shard
            shard, total = {}, 0
        shard[name], total = shape, total + size
    yield shard


def _write_shard(file: BinaryIO, tensors: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        size = _BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in tensors.items():
        for numbers in _numbers(name, shape, generator):
            file.write(numbers.to(torch.bfloat16).view(torch.uint8).numpy().data)
    file.flush()
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _numbers(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield the numbers of a tensor in pieces."""
    count = math.prod(shape)
    for start in range(0, count, _NUMBERS_AT_A_TIME):
        noise = torch.randn(min(_NUMBERS_AT_A_TIME, count - start), generator=generator)
        if len(shape) == 1:
            module = name.split(".")[-2]
            mean = next((mean for beginning, mean in _NORMS.items() if module.startswith(beginning)), 1.0)
            yield mean * (1 + 0.1 * noise)
        else:
            yield noise / shape[-1] ** 0.5 if "embed_tokens_per_layer" not in name else noise / 16
