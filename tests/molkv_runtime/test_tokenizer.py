"""Tokenizers: no padding, no truncation, and streamed text of any token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from molkv_bundle import BundleError, CheckpointError, Floats, RequestError
from molkv_export import export, validate
from molkv_export.parity.compared_texts import QUICK
from molkv_runtime import Generator, Sampling, open_tokenizer, selftest
from molkv_runtime.continuation import Continuation
from molkv_runtime.tokenizer import TextStream
from tests.manifests import replace_file
from tests.models import STDLIB_MINI

_SPECIAL, _ADDED = "<|special|>", "<|added|>"


def _with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([_SPECIAL])
    tokenizer.add_tokens([AddedToken(_ADDED, special=False)])
    return tokenizer


def _byte_level() -> Tokenizer:
    return _with_added_tokens(Tokenizer.from_file(str(STDLIB_MINI / "tokenizer.json")))


def _byte_fallback(stripped: int = 1) -> Tokenizer:
    """Build a tokenizer like Llama's: spaces are U+2581, characters without a token are bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefgh", "\u2581a", "ab", "cd"]
    merges = [("\u2581", "a"), ("a", "b"), ("c", "d")]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", stripped, 0)]
    )
    return _with_added_tokens(tokenizer)


_TOKENIZERS = {
    "byte level": _byte_level(),
    "byte fallback": _byte_fallback(),
    "byte fallback, three spaces stripped": _byte_fallback(3),
}


def _streamed(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def _expected(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(data=st.data())
def test_the_pieces_of_a_stream_join_to_the_decoded_text(name: str, data: st.DataObject) -> None:
    tokenizer = _TOKENIZERS[name]
    size = tokenizer.get_vocab_size()
    # The last ten ids are not in the tokenizer: vocabularies of models are often rounded up.
    any_id = st.integers(0, size + 9) | st.integers(0, 260) | st.integers(max(0, size - 14), size - 1)
    prompt = tokenizer.encode(data.draw(st.text(max_size=8) | st.sampled_from(["你", "a 你", "é", " "]))).ids
    ids = data.draw(st.lists(any_id, max_size=24))
    assert "".join(_streamed(tokenizer, prompt, ids)) == _expected(tokenizer, prompt, ids)


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(prompt=st.text(max_size=8), text=st.text(max_size=20))
def test_the_stream_of_an_encoded_text_is_that_text(name: str, prompt: str, text: str) -> None:
    tokenizer = _TOKENIZERS[name]
    whole, before = tokenizer.encode(prompt + text).ids, tokenizer.encode(prompt).ids
    if whole[: len(before)] == before:
        pieces = _streamed(tokenizer, before, whole[len(before) :])
        assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode(whole)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokenizer = _TOKENIZERS["byte fallback"]
    ids = [tokenizer.token_to_id(token) for token in ("\u2581a", "<0xE4>", "<0xBD>", "<0xA0>", "b", "\u2581", "c")]
    # The bytes of 你 could be followed by one that makes them unreadable, so they wait for the end of their run.
    assert _streamed(tokenizer, tokenizer.encode("a").ids, ids) == [" a", "", "", "", "你b", " ", "c", ""]
    level = _TOKENIZERS["byte level"]
    streamed = _streamed(level, [], level.encode("def 你\n").ids)
    assert streamed[0] == "def"
    assert streamed[-2:] == ["\n", ""]
    assert "你" in streamed


def test_incomplete_bytes_come_at_the_end() -> None:
    tokenizer = _TOKENIZERS["byte fallback"]
    ids = [tokenizer.token_to_id(token) for token in ("b", "<0xE4>", "<0xBD>")]
    assert _streamed(tokenizer, tokenizer.encode("你").ids, ids) == ["b", "", "", "\ufffd\ufffd"]
    # A run of bytes that begins in the prompt does not change the text before it.
    assert _streamed(tokenizer, tokenizer.encode("你").ids, ids[1:]) == ["", "", "\ufffd\ufffd"]


def test_the_token_that_ends_a_text_is_not_shown_whatever_it_is(generator: Generator) -> None:
    tokenizer = _TOKENIZERS["byte level"]
    a, end = tokenizer.encode("a").ids[0], tokenizer.token_to_id(_ADDED)
    for stops, pieces in (([end], ["a", ""]), ([], ["a", _ADDED])):
        settings = generator.settings(max_new_tokens=2)._replace(stop_ids=stops)
        text = Continuation(0, np.array([1]), 2, settings, TextStream(tokenizer, [1]))
        assert [text.add(_likeliest(token)).text for token in (a, end)] == pieces
        assert text.finish == ("stop" if stops else "length")


def _likeliest(token: int) -> Floats:
    logits = np.zeros(8192, np.float32)
    logits[token] = 1
    return logits


def test_text_of_a_high_temperature_streams(stdlib_mini_bundle: Path) -> None:
    generator = Generator(stdlib_mini_bundle)
    prompts = ["你好", "def ", "é"]
    for seed in range(5):
        sampling = Sampling(temperature=50, seed=seed)
        ids = [generator.tokenizer.encode(prompt).ids for prompt in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        for token in generator.stream(ids, max_new_tokens=24, sampling=sampling):
            if token.finish != "stop":
                written[token.sequence].append(token.id)
        texts = ["" for _ in prompts]
        for index, piece in generator.stream_text(prompts, max_new_tokens=24, sampling=sampling):
            texts[index] += piece
        assert texts == [_expected(generator.tokenizer, *both) for both in zip(ids, written, strict=True)]


def test_text_streams_in_pieces_that_make_up_the_decoded_tokens(stdlib_mini_bundle: Path) -> None:
    generator = Generator(stdlib_mini_bundle)
    prompt = "class Öl:\n    def "
    pieces = list(generator.text(prompt, max_new_tokens=60))
    ids = generator.tokenizer.encode(prompt).ids
    new = [token.id for token in generator.stream([ids], max_new_tokens=60)]
    assert len(pieces) > 20
    assert prompt + "".join(pieces) == generator.tokenizer.decode(ids + new)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("def ", "prompts: found str, expected a list of texts"),
        ([], "prompts: found an empty list, expected a list of texts"),
        ([[1, 2]], "prompts: found an item of type list, expected str; use `stream` for token ids"),
        ([b"def "], "prompts: found an item of type bytes, expected str"),
        (["\ud800"], "contains bytes that are not text, expected UTF-8"),
    ],
)
def test_arguments_that_are_not_a_list_of_texts_are_refused(
    stdlib_mini_bundle: Path, prompts: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Generator(stdlib_mini_bundle).stream_text(prompts)


def test_a_bundle_without_a_tokenizer_takes_ids_only(generator: Generator) -> None:
    with pytest.raises(BundleError, match=r"has no tokenizer.json, so prompts must be token ids"):
        list(generator.text("def "))


def _with_saved_state(content: bytes) -> bytes:
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(64)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    assert found["padding"]
    assert found["truncation"]
    return json.dumps(found).encode()


@pytest.mark.slow
def test_a_saved_padding_and_truncation_change_nothing(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    """Check the driver, the export (golden vectors are the same), the self-test and `validate`."""
    content = _with_saved_state((STDLIB_MINI / "tokenizer.json").read_bytes())
    checkpoint = shutil.copytree(STDLIB_MINI, tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").write_bytes(content)
    export(checkpoint, tmp_path / "bundle")
    plain, stateful = Generator(stdlib_mini_bundle), Generator(tmp_path / "bundle")
    texts = ["def ", "x = 1\n" * 50]
    assert [e.ids for e in stateful.tokenizer.encode_batch(texts)] == [
        e.ids for e in plain.tokenizer.encode_batch(texts)
    ]
    assert list(stateful.stream_text(texts, max_new_tokens=8)) == list(plain.stream_text(texts, max_new_tokens=8))
    golden = [(bundle / "golden.safetensors").read_bytes() for bundle in (stdlib_mini_bundle, tmp_path / "bundle")]
    assert golden[0] == golden[1]
    assert not selftest(tmp_path / "bundle").failures
    assert not validate(tmp_path / "bundle", checkpoint, scope=QUICK).failures


def test_an_invalid_tokenizer_is_refused(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer.json: is not a tokenizer"):
        open_tokenizer(b"{}", Path("tokenizer.json"), BundleError)
    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    replace_file(bundle, "tokenizer.json", b"{}")
    with pytest.raises(BundleError, match=r"tokenizer.json: is not a tokenizer"):
        Generator(bundle).text("def ")


def test_a_tokenizer_that_fails_when_it_is_used_is_refused(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    found = json.loads((STDLIB_MINI / "tokenizer.json").read_text())
    panics = {
        **found,
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""},
    }  # a panic of Rust is no Exception
    no_unknown = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).to_str())
    for broken, message in ((panics, "is not a tokenizer"), (no_unknown, "cannot encode a text")):
        content = json.dumps(broken).encode()
        bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / message)
        replace_file(bundle, "tokenizer.json", content)
        with pytest.raises(BundleError, match=f"tokenizer.json: {message}"):
            Generator(bundle).text("def ")
        checkpoint = shutil.copytree(STDLIB_MINI, tmp_path / "checkpoint" / message)
        (checkpoint / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"tokenizer.json: {message}"):
            export(checkpoint, tmp_path / "out")
