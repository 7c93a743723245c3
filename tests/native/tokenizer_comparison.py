"""The comparison of a driver's tokenizer with Hugging Face's tokenizers and the Python driver."""

from __future__ import annotations

import functools
import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from molkv_runtime.tokenizer import TextStream
from tests.native.texts import random_text
from tests.native.tokenizers_of_all_kinds import Json, make_tokenizer

FEW, MANY = 20, 900  # texts of each tokenizer; 8 tokenizers of each of the 14 kinds: 2,240 or 100,800 texts
_SEEDS = range(8)


def compare_kind(kind: str, count: int, command: Sequence[str | Path], folder: Path) -> None:
    """Ask a program for the ids, texts and pieces of random texts, and compare each answer.

    Args:
        kind: A key of `KINDS`.
        count: The number of texts of each tokenizer.
        command: The program and its first arguments; the path of a tokenizer.json is added. The format of requests
            and answers is in runtimes/native/tests/tokenize.cpp.
        folder: A folder for the tokenizers.
    """
    for seed in _SEEDS:
        made = make_tokenizer(kind, seed, _corpus())
        file = folder / "tokenizer.json"
        file.write_text(json.dumps(made, ensure_ascii=bool(seed % 3)), "utf-8")
        rng = random.Random(f"{kind} {seed} texts")
        _compare([*command, file], made, [random_text(rng) for _ in range(count)], rng)


@functools.cache
def _corpus() -> list[str]:
    rng = random.Random(22)
    return [random_text(rng) for _ in range(300)] + Path(__file__).read_text("utf-8").splitlines(keepends=True)


def _compare(command: Sequence[str | Path], made: Json, texts: Sequence[str], rng: random.Random) -> None:
    library = Tokenizer.from_file(str(command[-1]))
    library.no_truncation()
    requests: list[tuple[str, str]] = []
    expected: list[str] = []
    for text in texts:
        ids = _encode_or_none(library, text)
        if ids is None:
            requests.append(("e", text))
            expected.append("refused")
            continue
        requests += [("e", text), ("E", text)]
        expected += [_join(ids), _join(_encode(library, text, True))]
        listed = [*ids, *rng.choices(range(len(made["model"]["vocab"]) + 40), k=rng.randrange(12))]
        if rng.random() < 0.1:
            listed *= 4
        requests.append(("d", _join(listed)))
        expected.append(library.decode(listed))
        cut = rng.randrange(len(listed) + 1)
        requests.append(("s", f"{_join(listed[:cut])}|{_join(listed[cut:])}"))
        stream = TextStream(library, listed[:cut])
        expected.append("\xff".join([*(stream.push(token) for token in listed[cut:]), stream.finish()]))
    for request, found, right in zip(requests, _ask(command, requests), expected, strict=True):
        assert found == right, (request, made | {"model": None})


def _encode(library: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    return library.encode(text, add_special_tokens=add_special_tokens).ids


def _encode_or_none(library: Tokenizer, text: str) -> list[int] | None:
    """Return None if the library panics: a token with lstrip is in white space that belongs to the token before it."""
    try:
        return _encode(library, text, False)
    except BaseException as error:
        if "bad split" not in str(error):
            raise
        return None


def _join(ids: Sequence[int]) -> str:
    return "".join(f"{token} " for token in ids)


def _ask(command: Sequence[str | Path], requests: Sequence[tuple[str, str]]) -> list[str]:
    asked = b"".join(f"{kind}{len(text.encode())}\n".encode() + text.encode() for kind, text in requests)
    done = subprocess.run(command, input=asked, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    rest, answers = done.stdout, []
    while rest:
        size, rest = rest.split(b"\n", 1)
        answers.append(rest[: int(size)].replace(b"\xff", "\xff".encode()).decode())
        rest = rest[int(size) :]
    return answers
