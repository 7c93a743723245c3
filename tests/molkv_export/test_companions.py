"""Companion files: token ids that end a text are resolved, and missing files are reported."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, processors

from molkv_bundle import CheckpointError, SamplingDefaults
from molkv_export import export, inspect
from molkv_export.companions import Companions
from molkv_export.families import open_checkpoint
from molkv_export.inspection import print_inspection
from molkv_runtime import Generator

GENERATION, CONFIG, TOKENS = "generation_config.json", "config.json", "tokenizer_config.json"
NO_END = "has no end-of-text token"
GREEDY = SamplingDefaults(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1)


@pytest.fixture
def folder(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(checkpoints("molkv"), tmp_path / "checkpoint")
    _save_tokenizer(folder, {"a": 0, "b": 1, "<end>": 7})
    return folder


def _save_tokenizer(folder: Path, vocabulary: dict[str, int], **processor: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    if processor:
        tokenizer.post_processor = processors.TemplateProcessing(**processor)
    tokenizer.save(str(folder / "tokenizer.json"))


def _set(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **fields}))


def _companions(folder: Path, begins_with_bos: bool = False) -> Companions:
    with open_checkpoint(folder) as source:
        return Companions(source, begins_with_bos)


@pytest.mark.parametrize(
    ("said", "resolved"),
    [
        ({GENERATION: 3, CONFIG: 4, TOKENS: "<end>"}, (3,)),
        ({GENERATION: [3, 96, 3], CONFIG: 4}, (3, 96)),
        ({GENERATION: None, CONFIG: [4, 5], TOKENS: "<end>"}, (4, 5)),
        ({CONFIG: 4, TOKENS: "<end>"}, (4,)),
        ({CONFIG: None, TOKENS: "<end>"}, (7,)),
        ({TOKENS: {"content": "<end>", "lstrip": False, "__type": "AddedToken"}}, (7,)),
        ({GENERATION: 0, TOKENS: "<unknown>"}, (0,)),  # fields that are not needed are not looked up
    ],
)
def test_end_ids_come_from_the_first_file_that_names_one(said: dict[str, Any], resolved: object, folder: Path) -> None:
    for name, value in said.items():
        _set(folder, name, **{"eos_token" if name == TOKENS else "eos_token_id": value})
    found = _companions(folder)
    assert found.generation.eos_token_ids == resolved
    assert not found.warnings


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.7, "top_k": 5, "do_sample": False}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "typical_p": 1.0},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1},
        ),
        (
            {"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "min_p": None},
            {"temperature": 1.0},
        ),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_penalty": None}, {}),
    ],
)
def test_the_defaults_of_sampling_are_those_of_transformers(
    fields: dict[str, Any], expected: dict[str, Any], folder: Path
) -> None:
    _set(folder, GENERATION, eos_token_id=7, **fields)
    assert _companions(folder).generation.sampling == msgspec.structs.replace(GREEDY, **expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 1e-7, "temperature is 1e-07, expected 0 (greedy), or 1e-06 to 1e+06"),
        ("temperature", 10**400, "temperature is 1000000"),
        ("temperature", True, "temperature is true, expected 0"),
        ("top_k", -1, "top_k is -1, expected 0 (off) to 2147483647"),
        ("top_k", 1.5, "top_k is 1.5, expected 0 (off) to 2147483647"),
        ("top_p", 0, "top_p is 0, expected more than 0 and at most 1"),
        ("min_p", "0.1", 'min_p is "0.1", expected 0 to 1'),
        ("repetition_penalty", [1], "repetition_penalty is [1], expected 0.01 to 100"),
    ],
)
def test_impossible_defaults_of_sampling_are_refused(name: str, value: object, message: str, folder: Path) -> None:
    _set(folder, GENERATION, eos_token_id=7, do_sample=True, **{name: value})
    with pytest.raises(CheckpointError) as caught:
        _companions(folder)
    assert f"{GENERATION}: {message}" in str(caught.value)
    assert str(caught.value).endswith("; correct it or remove the field")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["false", "yes", 1, 0, [], {}])
def test_do_sample_is_a_boolean(value: object, folder: Path) -> None:
    _set(folder, GENERATION, eos_token_id=7, temperature=0.5, do_sample=None)
    assert _companions(folder).generation.sampling == GREEDY
    _set(folder, GENERATION, do_sample=value)
    expected = f"do_sample is {json.dumps(value)}, expected true, false or null; correct it or remove the field"
    with pytest.raises(CheckpointError, match=re.escape(f"{GENERATION}: {expected}")):
        _companions(folder)


NAMED = {"name": "default", "template": "{{ messages }}"}


@pytest.mark.parametrize("value", [5, True, False, NAMED, [5], [NAMED, {"name": "rag"}], [{**NAMED, "template": 5}]])
def test_a_chat_template_of_an_unknown_kind_is_refused(value: object, folder: Path) -> None:
    _set(folder, TOKENS, chat_template=value)
    with pytest.raises(CheckpointError) as caught:
        _companions(folder)
    assert f"{TOKENS}: chat_template is {json.dumps(value)[:40]}" in str(caught.value)
    expected = 'expected a string, or a list of objects with strings "name" and "template"; correct it or remove'
    assert expected in str(caught.value)


def test_one_of_several_named_chat_templates_is_the_default(folder: Path) -> None:
    rag = {"name": "rag", "template": "{{ documents }}"}
    _set(folder, TOKENS, chat_template=[rag, NAMED])
    _set(folder, GENERATION, eos_token_id=7)
    found = _companions(folder)
    assert (found.generation.chat_template, found.warnings) == (TOKENS, [])
    _set(folder, TOKENS, chat_template=[rag])
    found = _companions(folder)
    assert found.generation.chat_template == ""
    assert [warning for warning in found.warnings if f'{TOKENS}: no chat template is named "default"' in warning]
    for none in (None, ""):
        _set(folder, TOKENS, chat_template=none)
        assert _companions(folder).generation.chat_template == ""


def test_the_chat_template_is_found_where_transformers_finds_it(folder: Path) -> None:
    assert _companions(folder).generation.chat_template == ""
    _set(folder, TOKENS, chat_template="{{ messages }}")
    assert _companions(folder).generation.chat_template == TOKENS
    (folder / "chat_template.jinja").write_text("{{ messages[0] }}")
    found = _companions(folder)
    assert found.generation.chat_template == "chat_template.jinja"
    assert found.files["chat_template.jinja"] == b"{{ messages[0] }}"


@pytest.mark.parametrize("place", ["file", "field", "list"])
def test_a_chat_template_that_cannot_be_compiled_gives_a_warning(place: str, folder: Path) -> None:
    _set(folder, GENERATION, eos_token_id=7)
    broken = "line 1\n{% if %}"
    if place == "file":
        (folder / "chat_template.jinja").write_text(broken)
    else:
        _set(folder, TOKENS, chat_template=broken if place == "field" else [{"name": "default", "template": broken}])
    found = _companions(folder)
    assert found.generation.chat_template == ("chat_template.jinja" if place == "file" else TOKENS)
    (warning,) = found.warnings
    assert f"{found.generation.chat_template}: the chat template is not valid Jinja (line 2: " in warning


def test_a_chat_template_that_is_not_text_gives_a_warning(folder: Path) -> None:
    _set(folder, GENERATION, eos_token_id=7)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    (warning,) = _companions(folder).warnings
    assert "chat_template.jinja: is not a chat template, expected text in UTF-8 (" in warning


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        *(
            (name, "eos_token_id", value, f"{name}: eos_token_id is {text}, expected token ids from 0 to 96")
            for name in (GENERATION, CONFIG)
            for value, text in ((97, "97"), (-1, "-1"), (True, "true"), ([], "[]"), ([0, 999999], "[0, 999999]"))
        ),
        (GENERATION, "eos_token_id", [[0]], "eos_token_id is [[0]], expected"),
        (TOKENS, "eos_token", 7, f"{TOKENS}: eos_token is 7, expected a string, or an object"),
        (TOKENS, "eos_token", {"content": 7}, f"{TOKENS}: eos_token is 7, expected a string"),
    ],
)
def test_an_invalid_end_token_is_refused(name: str, field: str, value: object, message: str, folder: Path) -> None:
    _set(folder, name, **{field: value})
    with pytest.raises((CheckpointError, ValueError)) as caught:
        _companions(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "processor"),
    [
        ({"a": 0, "b": 97}, {}),  # two tokens, and a hole
        ({"a": 0}, {"single": "<s> $A", "special_tokens": [("<s>", 97)]}),
    ],
)
def test_a_tokenizer_with_ids_outside_the_vocabulary_is_refused(
    vocabulary: dict[str, int], processor: dict[str, Any], folder: Path
) -> None:
    _save_tokenizer(folder, vocabulary, **processor)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: its highest token id is 97, expected at most 96"):
        _companions(folder)
    _save_tokenizer(folder, {"a": 0, "b": 96})
    assert "tokenizer.json" in _companions(folder).files


@pytest.mark.parametrize(
    ("single", "begins_with_bos", "bos_token_id", "has_warning"),
    [
        ("$A", True, 1, True),
        ("$A", False, 1, False),
        ("$A", True, None, False),
        ("b $A", True, 1, False),
        ("b $A", True, 7, True),
        ("$A <end>", True, 1, True),
    ],
)
def test_a_tokenizer_without_the_first_token_of_texts_gives_a_warning(
    single: str, begins_with_bos: bool, bos_token_id: int | None, has_warning: bool, folder: Path
) -> None:
    _set(folder, CONFIG, eos_token_id=7, bos_token_id=bos_token_id)
    vocabulary = {"a": 0, "b": 1, "<end>": 7}
    _save_tokenizer(folder, vocabulary, single=single, special_tokens=[("b", 1), ("<end>", 7)])
    token = {1: "b", 7: "<end>"}.get(bos_token_id or 0, "")
    warning = (
        f"{folder / 'tokenizer.json'}: does not begin texts with {token}, which the model expects; begin prompts with "
        "it, or correct the file"
    )
    assert _companions(folder, begins_with_bos).warnings == ([warning] if has_warning else [])


def _said(folder: Path) -> list[str]:
    out = io.StringIO()
    export(folder, folder.parent / "bundle", console=Console(file=out, width=500), force=True)
    return [line for line in out.getvalue().splitlines() if line.startswith("warning: ")]


def test_export_and_inspect_name_a_missing_file_once(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("blobs/nowhere")
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    (folder / TOKENS).write_text('{"eos_token": "<end>"}')
    link, other, end = _said(folder)
    assert "tokenizer.json: is a broken link, so the bundle will not have this file" in link
    assert "checkpoint: has tokenizer.model but no tokenizer.json, so the bundle will take only token ids" in other
    assert "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)" in other
    assert f'{NO_END} (tokenizer_config.json names "<end>", but there is no tokenizer.json), so' in end
    found = inspect(folder.parent / "bundle")
    assert [warning.split(",")[0] for warning in found.warnings] == [
        "the bundle has no tokenizer.json",
        "the bundle has no eos_token_ids",
    ]
    out = io.StringIO()
    print_inspection(found, Console(file=out, width=80))
    assert [line for line in out.getvalue().splitlines() if line.startswith("warning: ")] == [
        f"warning: {warning}" for warning in found.warnings
    ]
    assert Generator(folder.parent / "bundle").bundle.manifest.generation.eos_token_ids == ()


def test_no_note_is_printed_if_nothing_is_missing(folder: Path) -> None:
    (folder / TOKENS).write_text('{"eos_token": "<end>"}')
    (folder / "vocab.json").write_text("{}")  # not needed if there is a tokenizer.json
    assert _said(folder) == []
    assert inspect(folder.parent / "bundle").warnings == []
    assert Generator(folder.parent / "bundle").bundle.manifest.generation.eos_token_ids == (7,)
