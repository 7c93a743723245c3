"""Stop strings: compared with a search in the whole text, and end to end over the borders of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molkv_bundle import BundleError, RequestError
from molkv_runtime import Generator, Token
from molkv_runtime.continuation import Continuation
from molkv_runtime.options import Settings
from molkv_runtime.sampling import Sampling
from molkv_runtime.tokenizer import StopStrings, TextStream

_PROMPT = "def add(a, b):"


def _pushed(strings: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    stop = StopStrings(strings)
    return [*(stop.push(piece) for piece in pieces), stop.finish()], stop.found


def _expected(strings: Sequence[str], text: str) -> tuple[str, bool]:
    """Look at longer and longer beginnings of the text, until one ends with a stop string."""
    for end in range(1, len(text) + 1):
        complete = [string for string in strings if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=16),
    st.lists(st.text("abc", max_size=6), max_size=8),
)
def test_the_text_ends_before_the_string_that_is_complete_first(strings: list[str], pieces: list[str]) -> None:
    released, found = _pushed(strings, pieces)
    assert ("".join(released), found) == _expected(strings, "".join(pieces))


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4), st.text("ab", max_size=12))
def test_only_a_beginning_of_a_stop_string_is_held_back(strings: list[str], text: str) -> None:
    """After each character, the text that is held back is the longest end that is a beginning of a stop string."""
    stop, released = StopStrings(strings), ""
    for at, character in enumerate(text, 1):
        released += stop.push(character)
        if stop.found:
            break
        held = text[len(released) : at]
        ends = (text[start:at] for start in range(at + 1))
        assert held == next(end for end in ends if any(string.startswith(end) for string in strings))


def test_nothing_follows_a_stop_string() -> None:
    stop = StopStrings(["<end>"])
    assert [stop.push("a<e"), stop.push("nd>b"), stop.push("c"), stop.finish()] == ["a", "", "", ""]
    assert stop.found
    assert _pushed([], ["a", "b"]) == (["a", "b", ""], False)


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ("end", "stop: found a single string, expected a list of strings"),
        ([""], "stop: found a string of 0 characters, expected 1 to 1000 characters"),
        (["x" * 1001], "stop: found a string of 1001 characters, expected 1 to 1000 characters"),
        (["x" * 10_000], "stop: found a string of 10000 characters"),
        (["x"] * 17, "stop: found 17 strings, expected at most 16"),
        ([b"x"], "stop: found an item of type bytes, expected strings"),
        (b"xy", "stop: found an item of type int, expected strings"),
        ([None], "stop: found an item of type NoneType, expected strings"),
        (None, "stop: found NoneType, expected a list of strings"),
        (5, "stop: found int, expected a list of strings"),
    ],
)
def test_impossible_stop_strings_are_refused(generator: Generator, strings: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        StopStrings(strings)
    with pytest.raises(RequestError, match=message):
        generator.stream([[1]], stop=strings)


def test_the_largest_stop_strings_are_allowed() -> None:
    strings = [chr(ord("a") + index) * 1000 for index in range(16)]
    assert _pushed(strings, ["p" * 999, "p", "q"])[1]
    assert not _pushed(strings, ["p" * 999, "q" * 999])[1]


def test_stop_strings_need_a_tokenizer(generator: Generator) -> None:
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        generator.stream([[1]], stop=["x"])


@pytest.fixture
def trained(stdlib_mini_bundle: Path) -> Generator:
    return Generator(stdlib_mini_bundle, prefix_cache_bytes=0)


def _free(generator: Generator, prompt: str = _PROMPT) -> tuple[str, list[Token]]:
    """Return the greedy text of 24 tokens, and its tokens."""
    [completion] = generator.complete([prompt], max_new_tokens=24, stop_ids=[])
    return completion.text, completion.tokens


def _containing(tokens: Sequence[Token], string: str) -> list[int]:
    """Return the ids of a text up to the token whose text completes a string."""
    text = ""
    for at, token in enumerate(tokens):
        text += token.text
        if string in text:
            return [each.id for each in tokens[: at + 1]]
    raise AssertionError(f"{string!r} is not in {text!r}")


def test_every_part_of_a_text_is_a_stop_string_that_ends_it(trained: Generator) -> None:
    """Use all strings of three and of seven characters. Many of them begin or end within a token."""
    text, tokens = _free(trained)
    inside = 0
    for length in (3, 7):
        for start in range(0, len(text) - length, 5):
            string = text[start : start + length]
            [found] = trained.complete([_PROMPT], max_new_tokens=24, stop_ids=[], stop=[string])
            assert found.text == text[: text.index(string)]
            assert found.finish == "stop"
            ids = _containing(tokens, string)
            assert [token.id for token in found.tokens] == ids
            assert [token.finish for token in found.tokens[:-1]] == [None] * (len(ids) - 1)
            inside += "".join(token.text for token in tokens[: len(ids)]) != text[: text.index(string)] + string
    assert inside > 3


def test_a_string_that_is_not_found_changes_nothing(trained: Generator) -> None:
    text, tokens = _free(trained)
    [found] = trained.complete([_PROMPT], max_new_tokens=24, stop_ids=[], stop=[f"{text[-3:]}never", "\0"])
    assert (found.text, found.finish) == (text, "length")
    assert [token.id for token in found.tokens] == [token.id for token in tokens]
    assert found.tokens[-1].text.endswith(text[-3:])  # what was held back comes with the last token


def test_a_string_that_the_last_token_completes_is_the_reason(trained: Generator) -> None:
    text, _ = _free(trained)
    [found] = trained.complete([_PROMPT], max_new_tokens=24, stop_ids=[], stop=[text[-2:]])
    assert found.finish == "stop"
    assert found.text == text[: text.index(text[-2:])]


def test_an_end_token_releases_the_beginning_that_was_held_back(trained: Generator) -> None:
    _, tokens = _free(trained)
    end = next(at for at in range(5, 24) if tokens[at].id not in [token.id for token in tokens[:at]])
    before = "".join(token.text for token in tokens[:end])
    # The stop string would be complete with the text of the end token, but this text is not shown.
    string = before[-2:] + tokens[end].text
    [found] = trained.complete([_PROMPT], max_new_tokens=24, stop_ids=[tokens[end].id], stop=[string])
    assert (found.text, found.finish) == (before, "stop")
    assert found.tokens[-1] == Token(0, tokens[end].id, "stop", found.tokens[-1].text)
    assert found.tokens[-1].text.endswith(before[-2:])


def test_a_text_of_a_batch_stops_and_the_other_goes_on(trained: Generator) -> None:
    other = "import os\n"
    alone, [text, _] = _free(trained, other), _free(trained)
    string = next(text[at : at + 6] for at in range(5, 60) if text[at : at + 6] not in alone[0])
    pieces: dict[int, str] = {0: "", 1: ""}
    for sequence, piece in trained.stream_text([_PROMPT, other], max_new_tokens=24, stop_ids=[], stop=[string]):
        pieces[sequence] += piece
    assert pieces == {0: text[: text.index(string)], 1: alone[0]}
    ids = list(trained.stream([trained.encode([_PROMPT])[0]], max_new_tokens=24, stop_ids=[], stop=[string]))
    assert "".join(token.text for token in ids) == pieces[0]


def test_stop_strings_may_come_from_any_iterable(trained: Generator) -> None:
    text, _ = _free(trained)
    strings = [text[10:15]]
    for given_as in (tuple(strings), set(strings), iter(strings), np.array(strings)):
        [found] = trained.complete([_PROMPT], max_new_tokens=24, stop_ids=[], stop=given_as)  # type: ignore[typeddict-item]
        assert found.finish == "stop"


def test_bytes_of_an_incomplete_character_are_released_at_the_end(trained: Generator) -> None:
    """A text ends in the middle of a character. Its U+FFFD can complete a stop string."""
    first_byte = trained.encode(["é"])[0][:1]
    assert trained.tokenizer.decode(first_byte) == "\ufffd"
    cases = ([], "a\ufffd", "length"), (["a\ufffd"], "", "stop"), (["\ufffdb"], "a\ufffd", "length")
    for stop, text, finish in cases:
        [a] = trained.encode(["a"])
        tokens = _forced(trained, [*a, *first_byte], stop)
        assert ("".join(token.text for token in tokens), tokens[-1].finish) == (text, finish)


def _forced(generator: Generator, ids: Sequence[int], stop: Sequence[str], stop_ids: Sequence[int] = ()) -> list[Token]:
    """Return the tokens of a text whose ids are given: each row of logits has one large logit."""
    settings = Settings(len(ids), stop=tuple(stop), stop_ids=frozenset(stop_ids))
    text = Continuation(0, np.array([5]), 100, settings, TextStream(generator.tokenizer, [5]))
    return [text.add(np.eye(generator.config.vocab_size, dtype=np.float32)[token_id]) for token_id in ids]


def test_an_end_token_is_not_shown_even_if_its_text_is_a_stop_string(trained: Generator) -> None:
    [ids] = trained.encode(["ab cd"])
    tokens = _forced(trained, ids, [" cd"], stop_ids=ids[-1:])
    assert tokens[-1].finish == "stop"
    assert "".join(token.text for token in tokens) == trained.tokenizer.decode(ids[:-1])


def test_a_stop_string_that_names_a_special_token_ends_the_text(stdlib_mini_bundle: Path) -> None:
    """A special token has no text in a stream, so its text cannot be searched."""
    generator = Generator(stdlib_mini_bundle)
    special = "<|endoftext|>"
    token_id = generator.tokenizer.token_to_id(special)
    sampling = Sampling(logit_bias={token_id: 1e6})
    tokens = list(generator.stream([[5, 6]], max_new_tokens=4, sampling=sampling, stop_ids=[], stop=["x", special]))
    assert [(token.id, token.finish) for token in tokens] == [(token_id, "stop")]
    kept = generator.stream([[5, 6]], max_new_tokens=4, sampling=sampling, stop_ids=[], stop=["x"])
    assert [token.finish for token in kept] == [None, None, None, "length"]
