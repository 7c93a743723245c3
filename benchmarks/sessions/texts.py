"""Texts of three kinds for prompt lookup. They are from modules that stdlib-mini was not trained on."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from molkv_export.corpus import standard_library

_PROMPT, _ANSWER = 128, 128  # tokens of code and prose
_SHORTEST, _LONGEST = 80, 200  # tokens of a function that is edited
KINDS = ("edits of code", "code", "prose", "random tokens")


class Text(NamedTuple):
    """A prompt, and the text that follows it."""

    prompt: list[int]
    answer: list[int]


def texts(tokenizer: Tokenizer, count: int) -> dict[str, list[Text]]:
    """Return `count` texts of each kind.

    An edit repeats a function and renames its first argument. The prompt ends after the first line of the repetition.
    """
    functions, docstrings = [], []
    for module in standard_library().validation:
        tree = ast.parse(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.append((ast.get_source_segment(module, node) or "", [each.arg for each in node.args.args]))
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                docstrings.append(ast.get_docstring(node) or "")
    edits = (_edit(tokenizer, source, arguments) for source, arguments in functions)
    code = [tokenizer.encode(module).ids for module in standard_library().validation]
    prose = tokenizer.encode("\n\n".join(text for text in docstrings if len(text) > 200)).ids
    size = _PROMPT + _ANSWER
    random = np.random.default_rng(0).integers(1, tokenizer.get_vocab_size(), (count, size)).tolist()
    pieces = {
        "code": [ids[size : 2 * size] for ids in code if len(ids) > 2 * size],
        "prose": [prose[at : at + size] for at in range(0, len(prose) - size, size)],
        "random tokens": random,
    }
    found = {kind: [Text(ids[:_PROMPT], ids[_PROMPT:]) for ids in own[:count]] for kind, own in pieces.items()}
    return {"edits of code": [edit for edit in edits if edit is not None][:count], **found}


def _edit(tokenizer: Tokenizer, source: str, arguments: list[str]) -> Text | None:
    names = [name for name in arguments if name not in ("self", "cls")]
    before = tokenizer.encode(source).ids
    if not names or not _SHORTEST <= len(before) <= _LONGEST:
        return None
    first, _, rest = re.sub(rf"\b{names[0]}\b", "renamed", source).partition("\n")
    prompt = tokenizer.encode(f"{source}\n\n\n{first}\n").ids
    return Text(prompt, tokenizer.encode(rest).ids)
