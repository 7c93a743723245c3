"""The models of the suite, which are small and random with fixed seeds, and tokenizers that know a few words."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from molkv_bundle import Gemma4Config, LookupExpertConfig, RowDtype, model_config
from molkv_export import GraphOptions, export
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.families import reference_model
from runtimes.conformance.make import gemma4

_BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
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
_PLAIN = {"expert_rope": False, "expert_qk_norm": False, "expert_gate": "none"}
_ONE_LAYER = {"num_hidden_layers": 1, "expert_layers": [0]}
_LONG = {"max_position_embeddings": 160}  # more than a chunk of 128


# It has what templates of real models have: checks of roles, tools as JSON, trimmed texts, and a generation prompt.
_CHAT_TEMPLATE = """\
{%- if tools is defined and tools %}
    <tool>{{ tools | tojson }}{{ eos_token }}
{% endif %}
{%- for message in messages %}
    {%- if message.role == "system" and not loop.first %}
        {{- raise_exception("a system message must come first") }}
    {%- endif %}
    {{- "<|user|>" if message.role == "user" else message.role + ": " }}
    {{- message.content | trim }}
    {%- if not loop.last or add_generation_prompt %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "the owl: " }}
{%- endif %}
"""


class Recipe(NamedTuple):
    """The settings for making a bundle."""

    config: dict[str, Any]
    experts_dtype: RowDtype = "float16"
    graph: GraphOptions = GraphOptions("float16")  # half the size of float32 weights; still computed in float32
    profile: str = "cpu"
    tokenizer: str = ""
    generation: Mapping[str, Any] = MappingProxyType({"eos_token_id": 0})
    chat_template: str = ""
    special_tokens: Mapping[str, Any] = MappingProxyType({})  # tokenizer_config.json, if there is a chat template


_STATIC = GraphOptions(chunk_lengths=(1, 8))
# Most bundles round to few bits in one place only, because rounding can hide an error elsewhere.
RECIPES: dict[str, Recipe] = {
    "molkv": Recipe({**_MOLKV, **_LONG}, "float32", GraphOptions()),
    "molkv-foreign": Recipe({**_MOLKV, **_LONG}, "float32"),  # the same shapes, another model
    "mole": Recipe({**_MOLE, **_LONG}),
    "dense": Recipe({**_MOLE, "num_experts": 0}, "float32"),
    "experts-int8": Recipe({**_MOLKV, **_ONE_LAYER}, "int8"),
    "experts-int4": Recipe({**_MOLE, **_ONE_LAYER}, "int4"),
    "experts-nf4": Recipe({**_MOLKV, **_ONE_LAYER, **_PLAIN}, "nf4"),
    "window-int8": Recipe(_MOLKV, "int8", GraphOptions("float16", window_dtype="int8")),
    "window-int8-float16": Recipe({**_MOLKV, **_ONE_LAYER}, graph=GraphOptions("float16", window_dtype="int8")),
    "dense-int8": Recipe(_UNTIED, graph=GraphOptions("int8")),
    "dense-int4": Recipe({**_MOLE, **_ONE_LAYER}, graph=GraphOptions("int4", block_size=16)),
    "kv-int8": Recipe(_UNTIED, graph=GraphOptions("float16", kv_dtype="int8")),
    "coreml": Recipe(_UNTIED, graph=_STATIC._replace(dense_dtype="float16"), profile="coreml"),
    "nnapi": Recipe(_MOLE, "int8", _STATIC._replace(dense_dtype="qdq-int8"), "nnapi"),
    "bytes": Recipe(
        {**_UNTIED, "vocab_size": 280, "num_experts": 1},
        tokenizer="byte-level",
        generation={"eos_token_id": [267, 3]},
        chat_template=_CHAT_TEMPLATE,
        special_tokens={"eos_token": "<|end|>", "bos_token": None},
    ),
    "byte-fallback": Recipe(
        {**_MOLE, **_ONE_LAYER, "vocab_size": 304, "num_experts": 1},
        tokenizer="byte-fallback",
        generation={"eos_token_id": 2, "do_sample": True, "temperature": 5.0, "top_k": 40, "repetition_penalty": 1.1},
    ),
    "gemma4": Recipe(
        gemma4.CONFIG,
        "int4",
        GraphOptions("float16", context_length=64),
        tokenizer="gemma",
        generation=gemma4.GENERATION,
        chat_template=gemma4.CHAT_TEMPLATE,
        special_tokens={"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
}


def write_bundle(name: str, folder: Path, bundle: Path) -> Path:
    """Write the checkpoint of a recipe to a new folder, export its bundle, and return the checkpoint's folder."""
    recipe = RECIPES[name]
    config, seed = model_config(recipe.config, Path("config.json")), zlib.crc32(name.encode())
    folder.mkdir(parents=True)
    if isinstance(config, Gemma4Config):
        gemma4.save_checkpoint(config, seed, folder)
    else:
        assert isinstance(config, LookupExpertConfig)
        save_file(_weights(config, seed), folder / "model.safetensors")
        (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "generation_config.json").write_text(json.dumps(dict(recipe.generation)))
    if recipe.chat_template:
        (folder / "chat_template.jinja").write_text(recipe.chat_template)
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(recipe.special_tokens)))
    if recipe.tokenizer:
        _TOKENIZERS[recipe.tokenizer](config.vocab_size).save(str(folder / "tokenizer.json"))
    export(
        folder,
        bundle,
        profiles=[recipe.profile],
        graph=recipe.graph,
        experts_dtype=recipe.experts_dtype,
        command=f"runtimes/conformance/make: {name}",
    )
    return folder


@torch.no_grad()
def _weights(config: LookupExpertConfig, seed: int) -> dict[str, torch.Tensor]:
    """Return random weights. They are so large that every part of the model affects the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = reference_model(config)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() < 2 else noise / parameter.shape[-1] ** 0.5)
    if not config.tie_word_embeddings:
        # The rows of the LM head get different norms. Then the logits of the two most likely tokens differ by more than
        # the errors of quantized kernels, and texts also contain rare tokens.
        model.get_parameter("lm_head.weight").mul_(2 * torch.randn(config.vocab_size, 1, generator=generator).exp())
    return tensors_to_save(model)


def _byte_level(vocab_size: int) -> Tokenizer:
    """Return a tokenizer like GPT-2's, with two special added tokens and one that is not special."""
    merges = _merges(["Ġthe", "Ġow", "ls", "quick", "Ã©"])  # the last word is é
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(_vocabulary(alphabet, merges), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    assert tokenizer.get_vocab_size() <= vocab_size
    return tokenizer


def _byte_fallback(vocab_size: int) -> Tokenizer:
    """Return a tokenizer like Llama 2's: pieces of words, and byte tokens for all other text."""
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


def _gemma(vocab_size: int) -> Tokenizer:
    """Return a tokenizer like Gemma's: as `_byte_fallback`, but no space is put before a text."""
    merges = _merges(["▁the", "▁ow", "ls", "quick"])
    names = [*gemma4.SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *"\n▁abcdefghijklmnopqrstuvwxyzé京"]
    model = models.BPE(_vocabulary(names, merges), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in gemma4.SPECIAL_TOKENS])
    bos = gemma4.SPECIAL_TOKENS.index("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    assert tokenizer.get_vocab_size() <= vocab_size
    return tokenizer


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Return the BPE merges that build each word from left to right."""
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    return list(dict.fromkeys(merges))


def _vocabulary(names: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    return {name: index for index, name in enumerate([*names, *map("".join, merges)])}


_TOKENIZERS = {"byte-level": _byte_level, "byte-fallback": _byte_fallback, "gemma": _gemma}
