"""The training text: the source of Python's standard library, with whole modules held out for validation."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"

# Packages that are not part of the library itself, or hold mostly tables and generated texts.
_EXCLUDED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo"}
_HELD_OUT_SHARE = 16  # one module in sixteen


class Corpus(NamedTuple):
    """Source texts, one string for each module."""

    train: list[str]
    validation: list[str]


def is_held_out(module: str) -> bool:
    """Return whether a module is for validation. The result depends only on the path in the library."""
    return hashlib.sha256(module.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def standard_library() -> Corpus:
    """Read the running interpreter's standard library, in the order of the modules' paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules: list[Path] = []
    for name, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if folder not in _EXCLUDED]
        modules += [Path(name, file).relative_to(root) for file in files if file.endswith(".py")]
    corpus = Corpus([], [])
    for module in sorted(modules):
        text = (root / module).read_text(encoding="utf-8", errors="replace")
        (corpus.validation if is_held_out(module.as_posix()) else corpus.train).append(text)
    return corpus


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose token id 0 marks the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[np.int64]:
    """Encode texts into one array of token ids [n], with an end-of-text token after each text."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [i for encoding in tokenizer.encode_batch(texts) for i in (*encoding.ids, end)]
    return np.array(ids, np.int64)
