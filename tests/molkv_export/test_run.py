"""`molkv-export run`: prompts from files and from standard input, and the JSON of each prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from molkv_bundle import RequestError
from molkv_export.commands import cli
from molkv_runtime import Generator
from tests.processes import run_cli

pytestmark = pytest.mark.slow

TEXT = "\N{BYTE ORDER MARK}import os\r\n\r\ndef f(x):\n    return 'é'"  # a file is a prompt with all of its characters


@pytest.fixture
def run(stdlib_mini_bundle: Path) -> Callable[..., Result]:
    """Return a function that runs `run` in this process, with a content of standard input."""

    def run(*options: str | Path, stdin: bytes = b"") -> Result:
        command = ["run", stdlib_mini_bundle, "--max-new-tokens", "6", *options]
        done = CliRunner().invoke(cli, [str(word) for word in command], input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture(scope="module")
def generator(stdlib_mini_bundle: Path) -> Generator:
    return Generator(stdlib_mini_bundle, prefix_cache_bytes=0)


def _prompts(done: Result) -> list[str]:
    return [json.loads(line)["prompt"] for line in done.stdout.splitlines()]


def test_a_file_is_a_prompt_as_it_is(run: Callable[..., Result], generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(TEXT.encode())
    assert _prompts(run("--prompt-file", tmp_path / "prompt", "--json")) == [TEXT]
    assert _prompts(run("--prompt-file", "-", "--json", stdin=TEXT.encode())) == [TEXT]
    done = run_cli(
        "run", generator.bundle.path, "--prompt-file", "-", "--max-new-tokens", "6", "-q", stdin=TEXT.encode()
    )
    expected = generator.complete([TEXT], max_new_tokens=6)[0].text
    assert (done.returncode, done.stdout_bytes.decode()) == (0, f"{TEXT}{expected}\n")


def test_prompts_of_files_come_after_the_others(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    options = ("--prompt-file", tmp_path / "one", "--prompt", "two", "--prompt-file", "-", "--prompt", "three")
    assert _prompts(run(*options, "--json", stdin=b"four")) == ["two", "three", "one", "four"]


def test_a_pipe_with_a_name_is_a_prompt(run: Callable[..., Result]) -> None:
    """A shell passes such a name for `<(command)`."""
    read, write = os.pipe()
    os.write(write, b"import os")
    os.close(write)
    assert _prompts(run("--prompt-file", f"/dev/fd/{read}", "--json")) == ["import os"]
    os.close(read)


def test_a_file_that_cannot_be_a_prompt_is_named(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 * 1024**2 + 1)
    for name, message in [
        ("none", "cannot be read (No such file or directory); expected a file with a prompt"),
        ("", "cannot be read (Is a directory); expected a file with a prompt"),
        ("latin", "is not UTF-8 text ('utf-8' codec can't decode byte 0xe9 in position 3"),
        ("large", "has more than 67108864 bytes (64 MiB), expected a prompt"),
    ]:
        with pytest.raises(RequestError) as caught:
            run("--prompt-file", tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
    with pytest.raises(RequestError, match="standard input: is not UTF-8 text"):
        run("--prompt-file", "-", stdin=b"\xff")
    with pytest.raises(RequestError, match="has more than 67108864 bytes"):  # it never ends
        run("--prompt-file", "/dev/zero")


def test_a_file_with_a_prompt_of_a_wrong_length_is_named(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "long").write_text("x = 1\n" * 600)
    for options, message in [
        (
            ("--prompt", "a", "--prompt-file", tmp_path / "empty"),
            r"empty: has 0 tokens, expected 1 to 512 \(",
        ),
        (("--prompt-file", tmp_path / "long", "--json"), r"long: has \d{4} tokens, expected 1 to 512 \(the model's"),
        (("--prompt", "a", "--prompt-file", "-"), r"^standard input: has 0 tokens, expected 1 to 512"),
    ]:
        with pytest.raises(RequestError, match=message):
            run(*options)


def test_a_prompt_is_required_and_standard_input_is_read_once(run: Callable[..., Result]) -> None:
    for options, message in [
        ((), "found no prompt, expected --prompt TEXT or --prompt-file FILE"),
        (("--prompt-file", "-", "--prompt-file", "-"), "'--prompt-file': found - 2 times, expected at most once"),
    ]:
        done = run(*options, stdin=b"x")
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr


def test_json_has_the_fields_of_each_prompt(run: Callable[..., Result], generator: Generator) -> None:
    prompts = ["def f(x):", "import os\nimport"]
    done = run("--prompt", prompts[0], "--prompt", prompts[1], "--json")
    expected = generator.complete(prompts, max_new_tokens=6)
    for line, prompt, completion in zip(done.stdout.splitlines(), prompts, expected, strict=True):
        found = json.loads(line)
        timings = found.pop("timings")
        assert found == {
            "prompt": prompt,
            "text": completion.text,
            "tokens": [token.id for token in completion.tokens],
            "finish": "length",
        }
        assert timings.keys() == {"prompt_tokens", "new_tokens", "first_token_seconds", "seconds"}
        assert timings["prompt_tokens"] == len(generator.encode([prompt])[0])
        assert timings["new_tokens"] == 6
        assert 0 < timings["first_token_seconds"] <= timings["seconds"]


def test_json_has_the_log_probabilities(run: Callable[..., Result], generator: Generator) -> None:
    found = json.loads(run("--prompt", "import os", "--json", "--logprobs", "2").stdout)
    tokens = generator.complete(["import os"], max_new_tokens=6, logprobs=2)[0].tokens
    assert len(found["logprobs"]) == 6
    for entry, token in zip(found["logprobs"], tokens, strict=True):
        assert entry.keys() == {"id", "logprob", "best"}
        assert entry["id"] == token.id == entry["best"][0]["id"]  # the text is greedy
        assert entry["logprob"] == pytest.approx(token.logprob)
        assert [each["id"] for each in entry["best"]] == [each.id for each in token.best]
        assert entry["best"][0]["logprob"] > entry["best"][1]["logprob"]
    assert "best" in json.loads(run("--prompt", "x", "--json", "--logprobs", "0").stdout)["logprobs"][0]
    assert "logprobs" not in json.loads(run("--prompt", "x", "--json").stdout)


def test_a_stop_string_ends_the_text(run: Callable[..., Result], generator: Generator) -> None:
    whole = generator.complete(["import os"], max_new_tokens=6)[0].text
    middle = whole[len(whole) // 2 :]
    assert run("--prompt", "import os").stdout == f"import os{whole}\n"
    assert run("--prompt", "import os", "--stop", "never there", "--stop", middle).stdout == (
        f"import os{whole[: whole.index(middle)]}\n"
    )
    assert json.loads(run("--prompt", "import os", "--stop", middle, "--json").stdout)["finish"] == "stop"


def test_prompt_lookup_gives_the_same_text_in_fewer_steps(run: Callable[..., Result]) -> None:
    options = ("--prompt", "x = 1\n" * 20, "--max-new-tokens", "40", "-v")
    plain, fast = run(*options), run(*options, "--lookup", "8")
    assert plain.stdout == fast.stdout
    steps = [int(done.stderr.rpartition(" steps")[0].rpartition(", ")[2]) for done in (plain, fast)]
    assert steps[1] < steps[0] == 39
