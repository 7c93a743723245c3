"""Checkpoint folders in the format of MoLE's authors, with random weights.

The model has 12 layers of hidden size 768 with 12 heads, feed-forward networks of size 3072, 4 experts per layer, and
50,304 token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS, SIZE, INNER, VOCAB, EXPERTS, EPS = 12, 768, 3072, 50_304, 4, 1e-6
CONFIG = {
    "architectures": ["MoleForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "num_experts": EXPERTS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": EPS,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
_TABLE = "model.moe_table.weight"
_ROWS = 4096


def write_training(folder: Path) -> None:
    """Write the training form, 1.6 GB, with numbers that float16 represents exactly.

    The lookup form, which is float16, then has the same dense weights.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in _shapes():
        noise = torch.randn(shape, generator=generator)
        # The numbers are so large that experts and attention affect the logits. The weights of norms are not all 1.
        tensors[name] = (1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5).half().float()
    _write(folder, tensors)


def write_table(training: Path, folder: Path) -> None:
    """Write the lookup form, 4 GB: plain PyTorch computes the tables in RAM, and all tensors are stored as float16."""
    source = load_file(training / "model.safetensors")
    embedding = source["model.embed_tokens.weight"]
    table = torch.empty(VOCAB, LAYERS, EXPERTS, SIZE, dtype=torch.float16)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for start in range(0, VOCAB, _ROWS):
            x = embedding[start : start + _ROWS]
            x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * source[f"{at}expert_layernorm.weight"]
            for n in range(EXPERTS):
                up, down = (source[f"{at}experts.{n}.{part}_proj.weight"] for part in ("up", "down"))
                table[start : start + _ROWS, layer, n] = torch.nn.functional.gelu(x @ up.T) @ down.T
    dense = {k: v.half() for k, v in source.items() if ".experts." not in k and "expert_layernorm" not in k}
    _write(folder, {**dense, _TABLE: table.view(VOCAB, -1)})


def write_floor(training: Path, folder: Path) -> None:
    """Write the same model without experts, as a checkpoint in this project's own format."""
    source = load_file(training / "model.safetensors")
    tensors = {k: v for k, v in source.items() if "expert" not in k and ".router." not in k}
    fields = {
        k: v for k, v in CONFIG.items() if k.startswith(("num_", "max_", "rms_", "vocab", "hidden_size", "inter"))
    }
    _write(folder, tensors, {**fields, "model_type": "mole", "num_experts": 0, "hidden_act": "gelu"})


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCAB, SIZE)
    yield "model.norm.weight", (SIZE,)
    yield "lm_head.weight", (VOCAB, SIZE)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm", "expert_layernorm"):
            yield f"{at}{norm}.weight", (SIZE,)
        for part in "qkvo":
            yield f"{at}self_attn.{part}_proj.weight", (SIZE, SIZE)
        for network in ("mlp", *(f"experts.{n}" for n in range(EXPERTS))):
            yield f"{at}{network}.up_proj.weight", (INNER, SIZE)
            yield f"{at}{network}.down_proj.weight", (SIZE, INNER)
        yield f"{at}router.weight", (EXPERTS, SIZE)


def _write(folder: Path, tensors: dict[str, Tensor], fields: dict[str, object] = CONFIG) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
