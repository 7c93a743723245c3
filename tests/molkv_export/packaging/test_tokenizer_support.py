"""`unsupported_part` agrees with the native driver, message for message."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from molkv_export.packaging.tokenizer_support import unsupported_part
from tests.native.programs import native_program
from tests.native.tokenizers_of_all_kinds import KINDS, byte_level, make_tokenizer, metaspace, replace

_CORPUS = ["the cat and the hat", "def f(x):\n    return x + 1\n", "it's 1234 + 5678"] * 5
_CONFORMANCE = Path(__file__).parents[3] / "runtimes" / "conformance" / "bundles"

_ADDED = {"id": 9, "content": "<s>", "special": True, "normalized": False, "single_word": False, "lstrip": False}
_ADDED["rstrip"] = False
_MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
_GOOD = {"version": "1.0", "added_tokens": [_ADDED], "decoder": byte_level(False, True), "model": _MODEL}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_FUSE, _FALLBACK = {"type": "Fuse"}, {"type": "ByteFallback"}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_TEXT, _SPECIAL = {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "x"}}
_TEMPLATE = {"type": "TemplateProcessing", "single": [_SPECIAL, _TEXT], "special_tokens": {"x": {"ids": [1]}}}


def _sequence(field: str, *parts: object) -> dict[str, object]:
    return {"type": "Sequence", field: list(parts)}


# (changes of fields of _GOOD, the beginning of the message); a field with a dot is in the model
_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": "2.0"}, 'version: found "2.0", expected "1.0"'),
    ({"normalizer": {"type": "Lowercase"}}, 'normalizer: found "Lowercase", expected "NFC" or "Prepend" or "Replace"'),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": "a"}}}, 'normalizer.pattern: found no field "String"'),
    ({"normalizer": replace("", "a")}, "normalizer.pattern.String: found an empty text"),
    ({"normalizer": replace("a", "")}, "normalizer.content: found an empty text"),
    ({"normalizer": _sequence("normalizers", {"type": "NFKC"})}, 'normalizer.normalizers[0]: found "NFKC"'),
    ({"normalizer": {}}, 'normalizer: found no field "type"'),
    ({"normalizer": 5}, "normalizer: found an integer, expected an object"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer: found "Whitespace", expected "ByteLevel" or'),
    ({"pre_tokenizer": {"type": "ByteLevel"}}, 'pre_tokenizer: found no field "add_prefix_space"'),
    ({"pre_tokenizer": {**_SPLIT, "invert": True}}, "pre_tokenizer.invert: found true"),
    ({"pre_tokenizer": {**_SPLIT, "behavior": "Removed"}}, 'pre_tokenizer.behavior: found "Removed"'),
    ({"pre_tokenizer": {**_SPLIT, "pattern": {"String": ""}}}, "pre_tokenizer.pattern.String: found an empty text"),
    ({"pre_tokenizer": {**_SPLIT, "pattern": {"Regex": r"\w+"}}}, r'pre_tokenizer.pattern.Regex: found "\w+"'),
    ({"pre_tokenizer": metaspace("last")}, 'pre_tokenizer.prepend_scheme: found "last"'),
    ({"pre_tokenizer": metaspace("first") | {"add_prefix_space": False}}, "pre_tokenizer.add_prefix_space: found f"),
    ({"pre_tokenizer": metaspace("first") | {"replacement": "__"}}, 'pre_tokenizer.replacement: found "__"'),
    (
        {"pre_tokenizer": _sequence("pretokenizers", _SPLIT, metaspace("first"))},
        'pre_tokenizer.pretokenizers[1]: found "Metaspace", expected no other step',
    ),
    ({"post_processor": {"type": "BertProcessing"}}, 'post_processor: found "BertProcessing"'),
    ({"post_processor": {**_TEMPLATE, "single": [_SPECIAL]}}, "post_processor.single: found a template without"),
    ({"post_processor": {**_TEMPLATE, "single": [_TEXT, _TEXT]}}, "post_processor.single[1]: found the text a second"),
    ({"post_processor": {**_TEMPLATE, "special_tokens": {}}}, 'post_processor.special_tokens: found no field "x"'),
    ({"post_processor": _sequence("processors", _TEMPLATE, _TEMPLATE)}, "post_processor.processors[1]: found"),
    (
        {"normalizer": _sequence("normalizers", *[replace("a", "aa")] * 7)},
        "normalizer.normalizers[6]: found steps that make a text too long, expected at most 64 times the length",
    ),
    ({"normalizer": _sequence("normalizers", *[{"type": "NFC"}] * 4)}, "normalizer.normalizers[3]: found steps"),
    ({"normalizer": {"type": "Prepend", "prepend": "a" * 1001}}, "normalizer.prepend: found a text of 1001 bytes"),
    (
        {"pre_tokenizer": _sequence("pretokenizers", *[byte_level(False, True)] * 2)},
        'pre_tokenizer.pretokenizers[1]: found "ByteLevel" a second time',
    ),
    ({"post_processor": {**_TEMPLATE, "single": [_SPECIAL] * 1001}}, "post_processor.single: found 1001 parts"),
    (
        {"post_processor": {**_TEMPLATE, "special_tokens": {"x": {"ids": [1] * 1001}}}},
        "post_processor.single: found 1001 ids, expected at most 1000",
    ),
    ({"decoder": _sequence("decoders", *[replace("a", "ab")] * 7)}, "decoder.decoders[6]: found steps"),
    ({"decoder": None}, 'decoder: found "null", expected "ByteLevel"'),
    ({"decoder": {"type": "WordPiece"}}, 'decoder: found "WordPiece"'),
    ({"decoder": _sequence("decoders", _FUSE, _FALLBACK)}, 'decoder.decoders[1]: found "ByteFallback" after "Fuse"'),
    ({"decoder": _sequence("decoders", _STRIP)}, 'decoder.decoders[0]: found "Strip", expected "Fuse" before it'),
    (
        {"decoder": _sequence("decoders", _FUSE, {**_STRIP, "start": 2})},
        "decoder.decoders[1].start: found 2, exp",
    ),
    ({"decoder": _sequence("decoders", _FUSE, _STRIP, _STRIP)}, 'decoder.decoders[2]: found "Strip" a second time'),
    ({"model.type": "Unigram"}, 'model: found "Unigram", expected "BPE"'),
    ({"model.dropout": 0.5}, "model.dropout: found a number, expected null or 0"),
    ({"model.end_of_word_suffix": "</w>"}, "model.end_of_word_suffix: found a text"),
    ({"model.fuse_unk": None}, "model.fuse_unk: found null, expected a boolean"),
    ({"model.vocab": []}, "model.vocab: found no object"),
    ({"model.vocab": {"a": 0, "b": 0}}, "model.vocab: found the id 0 a second time"),
    ({"model.vocab": {"a": -1}}, "model.vocab.a: found -1, expected 0 to 2147483647"),
    ({"model.vocab": {"a": 0.5}}, "model.vocab.a: found a number, expected an integer"),
    ({"model.merges": {}}, "model.merges: found no list"),
    ({"model.merges": [["a", "b"], ["b", "c"]]}, 'model.merges[1]: found "c", expected a token'),
    ({"model.merges": ["b a"]}, 'model.merges[0]: found "ba", expected a token'),
    ({"model.merges": ["a  b"]}, 'model.merges[0]: found "a  b", expected two tokens'),
    ({"model.merges": [["a"]]}, "model.merges[0]: found 1 parts, expected 2 parts"),
    ({"added_tokens": [_ADDED, _ADDED]}, 'added_tokens[1]: found "<s>" a second time'),
    ({"added_tokens": [{**_ADDED, "content": "ä" * 501}]}, "added_tokens[0].content: found a text of 1002 bytes"),
    ({"added_tokens": [{"content": "x"}]}, 'added_tokens[0]: found no field "special"'),
    ({"added_tokens": {}}, "added_tokens: found no list"),
]


@pytest.mark.parametrize(("changes", "message"), _REFUSED)
def test_refused_parts_are_named(changes: dict[str, Any], message: str) -> None:
    found = unsupported_part(_changed(changes))
    assert found is not None
    assert found.startswith(message)


@pytest.mark.parametrize("changes", [changes for changes, _ in _REFUSED])
def test_native_driver_refuses_with_the_same_message(changes: dict[str, Any], tmp_path: Path) -> None:
    content = _changed(changes)
    assert _native_message(content, tmp_path) == f"tokenizer.json: {unsupported_part(content)}"


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_native_driver_also_refuses_what_is_not_json(content: bytes, tmp_path: Path) -> None:
    assert str(unsupported_part(content)).startswith("is not valid JSON: ")
    assert _native_message(content, tmp_path).startswith("tokenizer.json: is not valid JSON: ")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_are_supported(kind: str, seed: int) -> None:
    assert unsupported_part(json.dumps(make_tokenizer(kind, seed, _CORPUS)).encode()) is None


@pytest.mark.parametrize("name", sorted(path.parent.name for path in _CONFORMANCE.glob("*/tokenizer.json")))
def test_tokenizers_of_the_conformance_bundles_are_supported(name: str, tmp_path: Path) -> None:
    content = (_CONFORMANCE / name / "tokenizer.json").read_bytes()
    assert unsupported_part(content) is None
    assert _native_message(content, tmp_path) == ""


def _changed(changes: dict[str, Any]) -> bytes:
    made = copy.deepcopy(_GOOD)
    for field, value in changes.items():
        target = made["model"] if field.startswith("model.") else made
        target[field.removeprefix("model.")] = value
    return json.dumps(made).encode()


def _native_message(content: bytes, folder: Path) -> str:
    file = folder / "tokenizer.json"
    file.write_bytes(content)
    done = subprocess.run([native_program("tokenize"), file], input=b"", capture_output=True, check=False, timeout=60)
    return done.stderr.decode().rstrip("\n")
