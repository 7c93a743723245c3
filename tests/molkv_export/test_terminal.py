"""Output of the commands: names are printed unchanged in every encoding; a write error is one line."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from molkv_export import GraphOptions, export, inspect
from molkv_export.commands import cli
from molkv_export.inspection import print_inspection
from molkv_export.terminal import byte_progress, console, print_line
from tests.models import STDLIB_MINI
from tests.processes import CLI, Done, run_script

pytestmark = pytest.mark.slow

FULL = Path("/dev/full")
NAME = "b[/b] [red]é漢 :smile:[/"  # the slash makes a folder and a file name

# Arguments of each command. {placeholders} stand for paths that contain NAME.
COMMANDS = {
    "export": "CHECKPOINT NEW",
    "validate": "BUNDLE --checkpoint CHECKPOINT --sequences 1 --continuations 1 --new-tokens 2",
    "verify": "BUNDLE",
    "selftest": "BUNDLE",
    "selftest --verbose": "BUNDLE",
    "inspect --json": "BUNDLE",
    "export --json": "CHECKPOINT NEW",
    "bench": "BUNDLE --prompts 4 --contexts 16 --steps 2 --runs 1 --storage warm",
    "run": "BUNDLE --prompt NAME --max-new-tokens 2",
    "chat": "BUNDLE --template TEMPLATE --max-new-tokens 2",
    "inspect": "BUNDLE",
    "package": "BUNDLE NEW --target ios",
    "push": "BUNDLE URL",
    "providers": "",
    "train": "CONFIG NEW --steps 1 --batch-size 1 --sequence-length 8",
}
TRAIN = """
from molkv_export.commands import main
from molkv_export.training import loop
from molkv_export.corpus import Corpus
loop.standard_library = lambda: Corpus(["def f(x):\\n    return x\\n" * 20] * 2, ["def g(x): return x" * 20])
main()
"""  # a short text, so that the test is fast
ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "unbuffered": {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
}


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer, in a folder whose name is markup. Tests must not change it."""
    folder = shutil.copytree(checkpoints("molkv"), tmp_path_factory.mktemp("named") / NAME / "x]")
    words = {"?": 0, **{chr(code): code - 31 for code in range(32, 127)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """A bundle of the same model. Tests must not change it."""
    folder = checkpoint.with_suffix(".bundle")
    graph = GraphOptions(chunk_lengths=(1,))
    export(checkpoint, folder, profiles=["cpu", "coreml"], graph=graph, experts_dtype="float32")
    return folder


def _run(command: str, bundle: Path, folder: Path, environment: str, stdout: Path | None = None) -> Done:
    places = {
        "BUNDLE": str(bundle),
        "NAME": NAME,
        "CHECKPOINT": str(bundle.with_suffix("")),
        "CONFIG": str(STDLIB_MINI / "configs" / "molkv.json"),
        "NEW": str(folder / NAME / "y].new"),
        "TEMPLATE": str(folder / "template"),
        "URL": f"file://{folder / NAME / 'y].new'}",
    }
    (folder / "template").write_text("{{ messages[-1].content }}")
    words = f"{command} {COMMANDS[command]}".split()
    program = CLI
    if command == "train":
        program = folder / "train.py"
        program.write_text(TRAIN)
    arguments = [places.get(word, word) for word in words]
    return run_script(program, *arguments, environment=ENVIRONMENTS[environment], stdin=b"x\n", stdout=stdout)


def test_this_file_covers_every_command() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(cli.commands)


@pytest.mark.parametrize(
    ("command", "encoding"),
    [  # the output of `chat` is only the text of the model, and `providers` gets no names
        *((command, "cp1252") for command in COMMANDS if command not in ("chat", "providers")),
        ("inspect", "ascii"),
        ("run", "ascii"),
    ],
)
def test_names_are_printed_whatever_the_encoding(command: str, encoding: str, bundle: Path, tmp_path: Path) -> None:
    done = _run(command, bundle, tmp_path, encoding)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    shown = done.stdout_bytes.decode("utf-8" if b"\xc3\xa9" in done.stdout_bytes else encoding)
    for form in ("é漢", "é\\u6f22", "\\xe9\\u6f22"):  # click writes UTF-8 if the encoding is ASCII
        shown = shown.replace(form, "é漢")
    assert "b[/b] [red]é漢 :smile:[/" in shown


@pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")
@pytest.mark.parametrize(
    ("command", "buffering"), [*((command, "utf-8") for command in COMMANDS), ("verify", "unbuffered")]
)
def test_output_that_cannot_be_written_is_one_line(command: str, buffering: str, bundle: Path, tmp_path: Path) -> None:
    done = _run(command, bundle, tmp_path, buffering, FULL)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
@pytest.mark.parametrize(
    "rest", ["inspect BUNDLE | true", "run BUNDLE --prompt x | true", "inspect BUNDLE >&-", "inspect --help | true"]
)
def test_a_closed_pipe_is_not_an_error(rest: str, bundle: Path) -> None:
    line = f'"{sys.executable}" "{CLI}" {rest.replace("BUNDLE", "$0")}'
    done = subprocess.run(
        ["sh", "-c", line.replace("$0", '"$0"'), str(bundle)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["[/b]", "[red]x", ":smile:", "[link=http://x]y", "x" * 300])
def test_names_are_not_parsed_as_markup_on_any_console(name: str, bundles: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "[/b]"
    shutil.copytree(bundles("molkv"), folder)
    found = inspect(folder)
    shown = io.StringIO()
    for chosen in (Console(file=shown, width=80), Console(file=shown, width=80, markup=False)):
        print_line(chosen, name)
        print_inspection(found, chosen)
    assert shown.getvalue().splitlines().count(name) == 2
    assert shown.getvalue().splitlines().count(str(folder)) == 2


@pytest.mark.parametrize("name", ["[/b]", "[red]x", ":smile:"])
def test_the_console_of_the_commands_prints_strings_unchanged(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console().print(name)
    with byte_progress(Console(file=(bar := io.StringIO()), width=120)) as progress:
        progress.add_task(name, total=1)
    assert capsys.readouterr().out == f"{name}\n"
    assert name in bar.getvalue()
