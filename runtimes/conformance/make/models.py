"""The models of the suite: small, random, from seeds; and two tokenizers, trained on the words below."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from molkv_bundle import LookupExpertConfig, RowDtype
from molkv_export import GraphOptions, export
from molkv_export.checkpoints.native import lookup_expert_config, tensors_to_save
from molkv_export.families import reference_model

CONTEXT = 160  # more than a chunk of 128
_BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "num_experts": 2,
    "expert_intermediate_size": 16,
}
_MOLKV = {
    **_BASE,
    "model_type": "molkv",
    "tie_word_embeddings": True,
    "expert_layers": [1],
    "expert_gate": "sigmoid",
    "expert_key_size": 8,
    "expert_window": 5,
}
_UNTIED = {**_MOLKV, "tie_word_embeddings": False}
_MOLE = {**_BASE, "model_type": "mole", "hidden_act": "gelu"}


class Recipe(NamedTuple):
    """How a bundle is made."""

    config: dict[str, Any]
    seed: int
    experts_dtype: RowDtype
    profiles: tuple[str, ...] = ("cpu",)
    graph: GraphOptions = GraphOptions()
    tokenizer: str = ""
    generation: Mapping[str, Any] = MappingProxyType({"eos_token_id": 0})


_STATIC = GraphOptions(chunk_lengths=(1, 8), context_length=48)
RECIPES: dict[str, Recipe] = {
    "molkv": Recipe(_MOLKV, 1, "float32"),
    "molkv-foreign": Recipe(_MOLKV, 2, "float32", graph=GraphOptions("float16")),  # the same shapes, another model
    "molkv-float16": Recipe({**_MOLKV, "expert_rope": False}, 3, "float16", graph=GraphOptions("float16")),
    "molkv-int8": Recipe(_UNTIED, 4, "int8", graph=GraphOptions("int8", window_dtype="int8")),
    "molkv-int4": Recipe(
        {**_UNTIED, "expert_qk_norm": False}, 5, "int4", graph=GraphOptions("int4", block_size=16, window_dtype="int8")
    ),
    "molkv-nf4": Recipe(_UNTIED, 6, "nf4", graph=GraphOptions(kv_dtype="int8")),
    "mole": Recipe(_MOLE, 7, "float16", graph=GraphOptions("int8")),
    "dense": Recipe({**_MOLE, "num_experts": 0}, 8, "float32"),
    "coreml": Recipe(_UNTIED, 9, "float16", ("coreml",), _STATIC._replace(dense_dtype="float16")),
    "nnapi": Recipe(_MOLE, 10, "int8", ("nnapi",), _STATIC._replace(dense_dtype="qdq-int8")),
    "bytes": Recipe(
        {**_MOLKV, "vocab_size": 300},
        11,
        "float16",
        graph=GraphOptions("float16"),
        tokenizer="byte-level",
        generation={"eos_token_id": [267, 268]},
    ),
    "byte-fallback": Recipe(
        {**_MOLE, "vocab_size": 310},
        12,
        "int8",
        graph=GraphOptions("float16"),
        tokenizer="byte-fallback",
        generation={"eos_token_id": 2, "do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.9},
    ),
}


def write_bundle(name: str, folder: Path, bundle: Path) -> Path:
    """Write the checkpoint of a recipe into a new folder, and its bundle; return the checkpoint."""
    recipe = RECIPES[name]
    config = lookup_expert_config(recipe.config, Path("config.json"))
    folder.mkdir(parents=True)
    save_file(_weights(config, recipe.seed), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "generation_config.json").write_text(json.dumps(dict(recipe.generation)))
    if recipe.tokenizer:
        _TOKENIZERS[recipe.tokenizer](config.vocab_size).save(str(folder / "tokenizer.json"))
    export(
        folder,
        bundle,
        profiles=recipe.profiles,
        graph=recipe.graph,
        experts_dtype=recipe.experts_dtype,
        command=f"runtimes/conformance/make: {name}",
    )
    return folder


@torch.no_grad()
def _weights(config: LookupExpertConfig, seed: int) -> dict[str, torch.Tensor]:
    """Return weights so large that every part of the model matters for its logits."""
    generator = torch.Generator().manual_seed(seed)
    model = reference_model(config)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() < 2 else noise / parameter.shape[-1] ** 0.5)
    if not config.tie_word_embeddings:
        # Rows of different length: the two likeliest tokens are then further apart than quantized kernels differ.
        model.get_parameter("lm_head.weight").mul_(2 * torch.randn(config.vocab_size, 1, generator=generator).exp())
    return tensors_to_save(model)


def _byte_level(vocab_size: int) -> Tokenizer:
    """Make a tokenizer like GPT-2's, with two added tokens that are special and one that is not."""
    merges = _merges(["Ġthe", "Ġow", "ls", "quick", "Ã©"])  # the last one is é
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(_vocabulary(alphabet, merges), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    assert tokenizer.get_vocab_size() <= vocab_size
    return tokenizer


def _byte_fallback(vocab_size: int) -> Tokenizer:
    """Make a tokenizer like Llama 2's: pieces of words, and a token for each byte of what is none of them."""
    merges = _merges(["▁the", "▁ow", "ls", "quick"])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyzé京"]
    model = models.BPE(_vocabulary(names, merges), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer.get_vocab_size() <= vocab_size
    return tokenizer


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Return what puts words together from left to right, in their order."""
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    return list(dict.fromkeys(merges))


def _vocabulary(names: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    return {name: index for index, name in enumerate([*names, *map("".join, merges)])}


_TOKENIZERS = {"byte-level": _byte_level, "byte-fallback": _byte_fallback}
