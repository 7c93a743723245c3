"""Seeded random tokenizers of every kind that the native driver supports, as the objects of tokenizer.json."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_NEWER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = _NEWER.replace("DIGITS", r"\p{N}{1,3}")
QWEN2_PATTERN = _NEWER.replace("DIGITS", r"\p{N}")

Json = dict[str, Any]

# Contents of added tokens. Some are in vocabularies, some are white space, marks or beginnings of others.
CONTENTS = [
    *["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_start|>user", "[MASK]", "<0x41>", "'s", "foo"],
    *[
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\u3000",
        "▁",
        "▁▁",
        "▁the",
        "the",
        "Ġthe",
        "é",
        "e\u0301",
        "\u0301",
        "\u017f",
        "0",
    ],
    *["你", "🙂", "a b", " x", "x ", "ﬁ", "\u1100\u1161", "각", "İ", "<", "<|", "12"],
]


def byte_level(add_prefix_space: bool, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def split_and_byte_level(pattern: str) -> Json:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level(False, False)]}


def metaspace(scheme: str, split: bool = True) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


_NFC = {"type": "NFC"}
_BYTES = byte_level(True, True)
_LLAMA2_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")],
}
_FALLBACK, _FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_LLAMA2_DECODER = {"type": "Sequence", "decoders": [replace("▁", " "), _FALLBACK, _FUSE, _STRIP]}
_GEMMA_DECODER = {"type": "Sequence", "decoders": [replace("▁", " "), _FALLBACK, _FUSE]}
_GEMMA_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_FALLBACK_MODEL = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}

# name -> (normalizer, pre-tokenizer, decoder, settings of the model)
KINDS: dict[str, tuple[Json | None, Json | None, Json, Json]] = {
    "gpt2": (None, byte_level(False, True), _BYTES, {}),
    "gpt2-prefix": (None, byte_level(True, True), _BYTES, {}),
    "neox": (_NFC, byte_level(False, True), _BYTES, {}),
    "llama3": (None, split_and_byte_level(LLAMA3_PATTERN), _BYTES, {"ignore_merges": True}),
    "qwen2": (_NFC, split_and_byte_level(QWEN2_PATTERN), _BYTES, {}),
    "split-gpt2": (None, split_and_byte_level(GPT2_PATTERN), _BYTES, {}),
    "bytes-only": (None, byte_level(True, False), _BYTES, {}),
    "llama2": (_LLAMA2_NORMALIZER, None, _LLAMA2_DECODER, _FALLBACK_MODEL),
    "llama2-first": (None, metaspace("first", split=False), _LLAMA2_DECODER, _FALLBACK_MODEL),
    "metaspace": (None, metaspace("always"), metaspace("always"), {"unk_token": "<unk>", "fuse_unk": True}),
    "metaspace-unknown": (None, metaspace("first"), metaspace("first"), {"unk_token": "<unk>"}),
    "metaspace-never": (_NFC, metaspace("never"), metaspace("never"), {"byte_fallback": True}),
    "gemma": (replace(" ", "▁"), _GEMMA_SPLIT, _GEMMA_DECODER, _FALLBACK_MODEL),
    "gemma-split": (None, _GEMMA_SPLIT, _GEMMA_DECODER, {**_FALLBACK_MODEL, "fuse_unk": False}),
}


def make_tokenizer(kind: str, seed: int, corpus: list[str]) -> Json:
    """Train a small BPE on the corpus, and add random added tokens."""
    rng = random.Random(f"{kind} {seed}")
    normalizer, pre_tokenizer, decoder, settings = KINDS[kind]
    model = _train(normalizer, pre_tokenizer, rng.randrange(300, 900), corpus) | settings
    if "ByteLevel" not in json.dumps(pre_tokenizer):
        _add_byte_tokens(model, rng)
    added = _added_tokens(rng, seed)
    made = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    if seed % 2:
        made["truncation"] = None
        made["post_processor"] = _post_processor(rng)
        model["merges"] = [" ".join(pair) for pair in model["merges"] if not any(" " in part for part in pair)]
    return made


def _train(normalizer: Json | None, pre_tokenizer: Json | None, size: int, corpus: list[str]) -> Json:
    base = {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    base |= {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
    tokenizer = Tokenizer.from_str(json.dumps(base | {"model": json.loads(Tokenizer(models.BPE()).to_str())["model"]}))
    is_byte_level = "ByteLevel" in json.dumps(pre_tokenizer)
    if pre_tokenizer is None:  # without it a text is one word, which no trainer repeats
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    if normalizer is None and pre_tokenizer == _GEMMA_SPLIT:
        tokenizer.normalizer = normalizers.Sequence([])
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=256 if is_byte_level else 70,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return json.loads(tokenizer.to_str())["model"]


def _add_byte_tokens(model: Json, rng: random.Random) -> None:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if rng.random() < 0.3:  # characters with some of these bytes have no tokens
        names = [name for name in names if rng.random() < 0.9 or not name.startswith("<0x")]
    vocab = {name: place for place, name in enumerate(names)}
    if model["unk_token"] and "<unk>" not in vocab:
        raise AssertionError("the unknown token must exist")
    for token in model["vocab"]:
        vocab.setdefault(token, len(vocab))
    model["vocab"] = vocab


def _added_tokens(rng: random.Random, seed: int) -> list[Json]:
    contents = rng.sample(CONTENTS, rng.randrange(len(CONTENTS) // 2)) if seed else CONTENTS[:4]
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    chance = {"single_word": 0.2, "lstrip": 0.2, "rstrip": 0.2, "normalized": 0.4, "special": 0.5}
    plain = {flag: flag == "special" for flag in flags}
    return [
        {"id": 0, "content": content} | (plain if seed == 0 else {flag: rng.random() < chance[flag] for flag in flags})
        for content in contents
    ]


def _post_processor(rng: random.Random) -> Json:
    special = {"<a>": {"id": "<a>", "ids": [1, 5], "tokens": ["x", "y"]}, "b": {"id": "b", "ids": [2], "tokens": ["z"]}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pieces = [{"SpecialToken": {"id": "<a>", "type_id": 0}}, {"SpecialToken": {"id": "b", "type_id": 0}}]
    single = [*rng.choices(pieces, k=rng.randrange(3)), text, *rng.choices(pieces, k=rng.randrange(2))]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    template["pair"] = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    if rng.random() < 0.3:
        return template
    return {"type": "Sequence", "processors": [_BYTES, template]}
