"""The check whether the native driver supports a tokenizer.json.

The rules and messages are those of the C++ reader in runtimes/native/src (tokenizer.cpp and the classes that it uses).
tests/molkv_export/packaging/test_tokenizer_support.py compares both.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

_T = TypeVar("_T")
_Json = Any

_LONGEST_CONTENT = 1_000  # bytes of an added token, or of the text that a normalizer prepends
_MOST_IDS = 1_000  # special tokens that a template adds
_MOST_GROWTH = 64  # the factor by which the steps of a normalizer or decoder can make a text longer
_NFC_GROWTH = 3
_LARGEST_ID = 2**31 - 1
_TYPE_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "an integer"}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXPRESSIONS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    _WORDS + r"\p{N}{1,3}" + _OTHERS,  # Llama 3
    _WORDS + r"\p{N}" + _OTHERS,  # Qwen 2
}


def unsupported_part(content: bytes) -> str | None:
    """Return why the native driver refuses a tokenizer.json: the part, what was found, and what was expected.

    Args:
        content: The content of the file.

    Returns:
        A text such as 'normalizer: found "Lowercase", expected "NFC" or "Prepend" or "Replace"'; None if the native
        driver supports the tokenizer.
    """
    try:
        root = _Value("", json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_no_constant))
        _check_tokenizer(root)
    except _UnsupportedError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}"
    return None


class _UnsupportedError(Exception):
    pass


def _object(pairs: list[tuple[str, _Json]]) -> dict[str, _Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("found a key a second time")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}")


class _Value:
    """A value of the file and its place. Methods that return a Python value refuse values of other types."""

    def __init__(self, path: str, json: _Json) -> None:
        self.path, self.json = path, json

    def refuse(self, found: str, expected: str) -> NoReturn:
        raise _UnsupportedError(f"{self.path}{': ' if self.path else ''}found {found}, expected {expected}")

    def find(self, name: str) -> _Value | None:
        fields = self._typed(dict)
        return _Value(f"{self.path}{'.' if self.path else ''}{name}", fields[name]) if name in fields else None

    def __getitem__(self, name: str) -> _Value:
        found = self.find(name)
        if found is None:
            self.refuse(f'no field "{name}"', "one")
        return found

    def items(self) -> list[_Value]:
        return [_Value(f"{self.path}[{place}]", item) for place, item in enumerate(self._typed(list))]

    def text(self) -> str:
        return self._typed(str)

    def flag(self, name: str, otherwise: bool) -> bool:
        field = self.find(name)
        return otherwise if field is None else field._typed(bool)

    def id(self) -> int:
        number = self._typed(int)
        if not 0 <= number <= _LARGEST_ID:
            self.refuse(str(number), f"0 to {_LARGEST_ID}")
        return number

    def expect_text(self, expected: str) -> None:
        if self.text() != expected:
            self.refuse(f'"{self.text()}"', f'"{expected}"')

    def filled_text(self, expected: str) -> str:
        if not self.text():
            self.refuse("an empty text", expected)
        return self.text()

    def character(self) -> None:
        if len(self.text()) != 1:
            self.refuse(f'"{self.text()}"', "one character")

    def expect_type(self, *expected: str) -> str:
        name = "null" if self.json is None else self["type"].text()
        if name not in expected:
            self.refuse(f'"{name}"', " or ".join(f'"{name}"' for name in expected))
        return name

    def parts(self, field: str) -> list[_Value]:
        """Return the parts of a Sequence, or the part itself if it has another type."""
        return self[field].items() if self["type"].text() == "Sequence" else [self]

    def _typed(self, expected: type[_T]) -> _T:
        if type(self.json) is not expected:
            self.refuse(
                _TYPE_NAMES.get(type(self.json), "null" if self.json is None else "a number"), _TYPE_NAMES[expected]
            )
        return self.json


def _check_tokenizer(root: _Value) -> None:
    version = root.find("version")
    if version is not None:
        version.expect_text("1.0")
    vocabulary = _check_model(root["model"])
    for name, check in _CHECKS.items():
        field = root.find(name)
        if field is not None and field.json is not None:
            check(field)
    _check_decoder(root["decoder"])
    _check_added_tokens(root.find("added_tokens"), vocabulary)


def _check_model(model: _Value) -> dict[str, int]:
    if model.find("type") is not None:
        model.expect_type("BPE")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.find(name)
        if affix is not None and affix.json is not None and affix.text():
            affix.refuse("a text", "null or an empty text")
    dropout = model.find("dropout")
    if dropout is not None and dropout.json is not None:
        if type(dropout.json) not in (int, float):
            dropout._typed(float)
        if dropout.json != 0:
            dropout.refuse("a number", "null or 0")
    vocabulary = _check_vocabulary(model["vocab"])
    for name in ("ignore_merges", "fuse_unk"):
        model.flag(name, False)
    unknown = model.find("unk_token")
    if unknown is not None and unknown.json is not None:
        unknown.text()
    model.flag("byte_fallback", False)
    _check_merges(model["merges"], vocabulary)
    return vocabulary


def _check_vocabulary(value: _Value) -> dict[str, int]:
    if type(value.json) is not dict:
        value.refuse("no object", "an object of tokens and ids")
    vocabulary = {token: value[token].id() for token in value.json}
    ids = sorted(vocabulary.values())
    for first, second in itertools.pairwise(ids):
        if first == second:
            value.refuse(f"the id {first} a second time", "each id once")
    return vocabulary


def _check_merges(merges: _Value, vocabulary: dict[str, int]) -> None:
    if type(merges.json) is not list:
        merges.refuse("no list", "a list of merges")
    for merge in merges.items():
        if isinstance(merge.json, str) and merge.json.startswith("#version"):
            continue
        pair = _pair(merge)
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                merge.refuse(f'"{token}"', "a token of the vocabulary")


def _pair(merge: _Value) -> Sequence[str]:
    if isinstance(merge.json, list):
        parts = merge.items()
        if len(parts) != 2:
            merge.refuse(f"{len(parts)} parts", "2 parts")
        return [part.text() for part in parts]
    pair = merge.text().split(" ")
    if len(pair) != 2:
        merge.refuse(f'"{merge.text()}"', "two tokens with one space between them")
    return pair


def _check_normalizer(field: _Value) -> None:
    growth = 1
    for part in field.parts("normalizers"):
        name = part.expect_type("NFC", "Prepend", "Replace")
        if name == "NFC":
            growth = _checked_growth(part, growth * _NFC_GROWTH)
        elif name == "Prepend":
            size = len(part["prepend"].text().encode())
            if size > _LONGEST_CONTENT:
                part["prepend"].refuse(f"a text of {size} bytes", f"at most {_LONGEST_CONTENT}")
        else:
            growth = _check_replace(part, growth)


def _check_replace(part: _Value, growth: int) -> int:
    """Return the factor by which the steps up to this one can make a text longer."""
    old, new = part["pattern"]["String"], part["content"]
    sizes = [len(value.text().encode()) for value in (old, new)]
    old.filled_text("a text to replace")
    new.filled_text("a text")
    return _checked_growth(part, growth * max(1, math.ceil(sizes[1] / sizes[0])))


def _checked_growth(part: _Value, growth: int) -> int:
    if growth > _MOST_GROWTH:
        part.refuse("steps that make a text too long", f"at most {_MOST_GROWTH} times the length")
    return growth


def _check_pre_tokenizer(field: _Value) -> None:
    parts = field.parts("pretokenizers")
    has_byte_level = False
    for part in parts:
        name = part.expect_type("ByteLevel", "Metaspace", "Split")
        if name == "ByteLevel":
            part["add_prefix_space"]._typed(bool)
            part.flag("use_regex", True)
            if has_byte_level:
                part.refuse('"ByteLevel" a second time', "it once")
            has_byte_level = True
        elif name == "Metaspace":
            _check_metaspace(part)
            if len(parts) > 1:
                part.refuse('"Metaspace"', "no other step beside it")
        else:
            _check_split(part)


def _check_metaspace(part: _Value) -> None:
    part["replacement"].text()
    part.flag("split", True)
    part["replacement"].character()
    scheme = part.find("prepend_scheme")
    if scheme is not None and scheme.text() not in ("always", "first", "never"):
        scheme.refuse(f'"{scheme.text()}"', '"always" or "first" or "never"')
    if not part.flag("add_prefix_space", True) and (scheme is None or scheme.text() != "never"):
        part["add_prefix_space"].refuse("false", 'the prepend_scheme "never" beside it')


def _check_split(part: _Value) -> None:
    if part["invert"]._typed(bool):
        part["invert"].refuse("true", "false")
    separator = part["pattern"].find("String")
    if separator is not None:
        separator.filled_text("a text")
        part["behavior"].expect_text("MergedWithPrevious")
        return
    expression = part["pattern"]["Regex"]
    if expression.text() not in _EXPRESSIONS:
        expression.refuse(f'"{expression.text()}"', "the regular expression of GPT-2, Llama 3 or Qwen 2")
    part["behavior"].expect_text("Isolated")


def _check_post_processor(field: _Value) -> None:
    has_template = False
    for part in field.parts("processors"):
        if part.expect_type("ByteLevel", "TemplateProcessing") == "ByteLevel":
            continue
        if has_template:
            part.refuse('"TemplateProcessing" a second time', "it once")
        has_template = True
        _check_template(part)


def _check_template(part: _Value) -> None:
    has_text, count = False, 0
    pieces = part["single"].items()
    if len(pieces) > _MOST_IDS:
        part["single"].refuse(f"{len(pieces)} parts", f"at most {_MOST_IDS}")
    for piece in pieces:
        sequence = piece.find("Sequence")
        if sequence is None:
            numbers = part["special_tokens"][piece["SpecialToken"]["id"].text()]["ids"].items()
            for number in numbers:
                number.id()
            count += len(numbers)
            if count > _MOST_IDS:
                part["single"].refuse(f"{count} ids", f"at most {_MOST_IDS}")
            continue
        sequence["id"].expect_text("A")
        if has_text:
            piece.refuse("the text a second time", "it once")
        has_text = True
    if not has_text:
        part["single"].refuse("a template without the text", '{"Sequence": {"id": "A"}} in it')


_STEPS = ("Replace", "ByteFallback", "Fuse", "Strip")


def _check_decoder(field: _Value) -> None:
    name = field.expect_type("ByteLevel", "Metaspace", "Sequence", "Replace", "ByteFallback", "Fuse")
    if name == "ByteLevel":
        return
    if name == "Metaspace":
        _check_metaspace(field)
        return
    names: list[str] = []
    growth = 1
    for part in field.parts("decoders"):
        name = part.expect_type(*_STEPS)
        if names and _STEPS.index(name) < _STEPS.index(names[-1]):
            order = "an earlier place: the order is Replace, ByteFallback, Fuse, Strip"
            part.refuse(f'"{name}" after "{names[-1]}"', order)
        if name == "Replace":
            growth = _check_replace(part, growth)
        elif name == "Strip":
            _check_strip(part, names)
        names.append(name)


def _check_strip(part: _Value, before: list[str]) -> None:
    if "Fuse" not in before:
        part.refuse('"Strip"', '"Fuse" before it')
    for name, expected in (("start", 1), ("stop", 0)):
        number = part[name]._typed(int)
        if number != expected:
            part[name].refuse(str(number), str(expected))
    if "Strip" in before:
        part.refuse('"Strip" a second time', "it once")
    part["content"].character()


def _check_added_tokens(added: _Value | None, vocabulary: dict[str, int]) -> None:
    if added is None:
        return
    if type(added.json) is not list:
        added.refuse("no list", "a list of tokens")
    contents: set[str] = set()
    following = len(vocabulary)
    for item in added.items():
        content = item["content"].text()
        if len(content.encode()) > _LONGEST_CONTENT:
            item["content"].refuse(f"a text of {len(content.encode())} bytes", f"at most {_LONGEST_CONTENT}")
        for name in ("special", "single_word", "lstrip", "rstrip", "normalized"):
            item[name]._typed(bool)
        if not content:
            continue
        if content in contents:
            item.refuse(f'"{content}" a second time', "each content once")
        contents.add(content)
        token_id = vocabulary.get(content, following)
        if token_id > _LARGEST_ID:
            item.refuse(f"the id {token_id}", f"at most {_LARGEST_ID}")
        following = max(following, token_id + 1)


_CHECKS: dict[str, Callable[[_Value], None]] = {
    "normalizer": _check_normalizer,
    "pre_tokenizer": _check_pre_tokenizer,
    "post_processor": _check_post_processor,
}
