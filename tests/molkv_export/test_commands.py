"""The command line, run as a process: its output, the stream of the output, and its exit code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from molkv_bundle import ArgumentError
from molkv_export.commands import cli
from molkv_export.commands.options import byte_size
from molkv_runtime import Generator, Sampling
from tests.manifests import edit_manifest
from tests.models import STDLIB_MINI
from tests.processes import Done, run_cli, run_script

pytestmark = pytest.mark.slow


def _error(done: Done, status: int = 1) -> str:
    """Check that a command failed with an error of one line, and return the line."""
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_export_validate_inspect_and_run(tmp_path: Path) -> None:
    bundle = tmp_path / "stdlib-mini.bundle"
    done = run_cli("export", STDLIB_MINI, bundle, "--shard-size", "8MiB")
    assert done.returncode == 0, done.stderr
    assert "experts float16" in done.stdout

    quick = ("--sequences", "1", "--continuations", "2", "--new-tokens", "16")
    done = run_cli("validate", bundle, "--checkpoint", STDLIB_MINI, *quick, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["greedy"][0]["identical"] == 2
    done = run_cli("validate", bundle, "--checkpoint", STDLIB_MINI, *quick)
    assert done.returncode == 0, done.stderr
    assert "PASS the bundle matches the trained model" in done.stdout
    assert "…" not in done.stdout  # the table fits 80 columns

    done = run_cli("inspect", bundle, "--json")
    found = json.loads(done.stdout)
    assert found["sizes"]["bytes_per_token"] == found["tables"]["experts"]["stride"]
    assert len(found["tables"]["experts"]["shards"]) > 1
    assert found["provenance"]["command"].startswith("cli.py export ")
    assert "expert_key.{l}" in run_cli("inspect", bundle).stdout

    done = run_cli("run", bundle, "--prompt", "def ", "--max-new-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def ")
    both = run_cli("run", bundle, "--prompt", "def ", "--prompt", "import ", "--max-new-tokens", "12")
    assert both.stdout == (
        f"--- prompt 1\n{done.stdout}--- prompt 2\n"
        + run_cli("run", bundle, "--prompt", "import ", "--max-new-tokens", "12").stdout
    )


def test_run_samples_as_its_options_say(stdlib_mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(_generator: Generator, _prompts: object, **options: object) -> Iterator[None]:
        asked.append(options)
        return iter(())

    monkeypatch.setattr(Generator, "stream_text", note)
    options = (
        "--temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.5 --presence-penalty 0.25 "
        "--frequency-penalty -0.5 --logit-bias 42=-5 --logit-bias 3=1.5 --seed 11 --max-new-tokens 9 "
        "--stop a --stop b --lookup 5"
    )
    command = ["run", str(stdlib_mini_bundle), "--prompt", "def ", *options.split()]
    assert CliRunner().invoke(cli, command).exit_code == 0
    sampling = Sampling(0.5, 7, 0.9, 0.1, 1.5, 0.25, -0.5, {42: -5, 3: 1.5}, 11)
    assert asked == [{"sampling": sampling, "max_new_tokens": 9, "stop": ("a", "b"), "lookup": 5}]


@pytest.mark.parametrize("text", ["", "42", "=5", "x=1", "42=", "42=x"])
def test_an_invalid_logit_bias_is_a_usage_error(text: str) -> None:
    done = CliRunner().invoke(cli, ["run", "bundle", "--prompt", "x", "--logit-bias", text])
    assert done.exit_code == 2
    assert "expected a token id and a number such as 42=-5" in " ".join(done.stderr.split())


def test_two_biases_of_one_token_id_are_refused() -> None:
    biases = ("--logit-bias", "42=-5", "--logit-bias", "3=1", "--logit-bias", "42=3")
    done = CliRunner().invoke(cli, ["run", "bundle", "--prompt", "x", *biases])
    assert done.exit_code == 2
    assert "found several numbers for token id 42, expected one" in " ".join(done.stderr.split())


def test_validate_exits_with_1_and_names_the_phase_when_a_gate_fails(
    bundles: Callable[..., Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    edit_manifest(bundle, lambda m: (m["model"].update(expert_window=6), m["graphs"]["cpu"].update(expert_window=6)))
    done = run_cli("validate", bundle, "--checkpoint", checkpoints("molkv"), "--sequences", "1", "--new-tokens", "4")
    assert done.returncode == 1
    assert "FAIL step-by-step decode (as stored): max abs" in done.stdout
    assert "PASS" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", list(cli.commands))
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    done = run_cli(command, "--help")
    assert done.returncode == 0
    examples = done.stdout.partition("Example")[2].partition("Options:")[0].splitlines()[1:]
    assert [line for line in examples if line.strip()]
    for line in filter(str.strip, examples):  # each example is on a separate line
        assert f"{line} ".startswith(f"    molkv-export {command} ")
    assert set(cli.commands) >= {command}


def test_user_errors_are_printed_in_one_line(bundles: Callable[..., Path], tmp_path: Path) -> None:
    bundle = bundles("molkv")
    assert "nowhere: is not a folder" in _error(run_cli("export", "nowhere", "out", cwd=tmp_path))
    assert "nowhere/manifest.json: cannot be read" in _error(run_cli("inspect", "nowhere", cwd=tmp_path))
    assert "has no tokenizer.json" in _error(run_cli("run", bundle, "--prompt", "x"))
    assert "provider 'coreml'" in _error(run_cli("run", bundle, "--prompt", "x", "--provider", "coreml"))
    assert "is not a folder" in _error(run_cli("validate", bundle, "--checkpoint", tmp_path / "none"))
    assert "cannot be read" in _error(run_cli("train", tmp_path / "none.json", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_too_long_names_and_invalid_text_are_errors_of_one_line(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    long_name = "x" * 300
    assert "cannot be written (File name too long)" in _error(run_cli("export", STDLIB_MINI, long_name, cwd=tmp_path))
    assert "File name too long" in _error(run_cli("inspect", long_name, cwd=tmp_path))
    assert "contains bytes that are not text" in _error(run_cli("run", stdlib_mini_bundle, "--prompt", "abc\udcff"))


def test_markup_in_names_is_printed_unchanged(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "[bold]b[/x]"
    assert run_cli("export", checkpoints("molkv"), bundle).returncode == 0
    done = run_cli("inspect", bundle)
    assert done.returncode == 0, done.stderr
    assert "[bold]b[/x]" in done.stdout.replace("\n", "")


def test_empty_and_too_long_prompts_are_errors_of_one_line(stdlib_mini_bundle: Path) -> None:
    assert "has 0 tokens, expected 1 to 512" in _error(run_cli("run", stdlib_mini_bundle, "--prompt", ""))
    assert "tokens, expected 1 to 512" in _error(run_cli("run", stdlib_mini_bundle, "--prompt", "def f(x):\n" * 500))
    several = ("--prompt", "a", "--prompt", "", "--prompt", "b")
    assert "prompt 2 of 3 has 0 tokens" in _error(run_cli("run", stdlib_mini_bundle, *several))


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 2**20), ("1MiB", 2**20), ("1 GiB", 2**30), ("500MB", 500_000_000), ("2k", 2000)]
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1.5GiB", "-1", "1TB", "1b2", "1i"])
def test_an_invalid_size_is_refused(text: str, tmp_path: Path) -> None:
    done = run_cli("export", STDLIB_MINI, tmp_path / "out", "--shard-size", text)
    assert _error(done, 2) == (
        f"error: --shard-size: found {text!r}, expected a size: a number of bytes, or text such as 500MB or 1GiB"
    )


def test_a_config_that_is_not_json_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{x")
    assert "config.json: is not JSON (" in _error(run_cli("train", tmp_path / "config.json", tmp_path / "out"))


def test_an_argument_error_names_what_was_found_and_survives_a_process() -> None:
    error = ArgumentError("top_k", -3, "0 or more")
    error.add_note("nothing was kept")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "top_k: found -3, expected 0 or more"
    assert (copy.argument, copy.found, copy.expected) == ("top_k", "-3", "0 or more")
    assert copy.__notes__ == ["nothing was kept"]


def test_a_value_with_line_breaks_and_escape_sequences_is_an_error_of_one_line(tmp_path: Path) -> None:
    name = "a\nb\x1b[31m.txt"
    for options in (("--plot", name), ("--quick", "--checkpoint", "x", f"--{name}")):
        done = run_cli("validate", tmp_path, *options)
        assert _error(done, 2).isprintable()
        assert done.stderr.count("\n") == 1
    assert "--plot: found a\\nb\\x1b[31m.txt, expected a file name" in run_cli("validate", "b", "--plot", name).stderr


_ARGUMENT_ERROR = """
import molkv_export
from molkv_bundle import ArgumentError
from molkv_export.commands import main


def fail(*_, **__):
    error = ArgumentError("profile", "cpu", "another one")
    error.add_note("nothing was kept")
    raise error


molkv_export.add_profile = fail
main()
"""


def test_the_notes_of_an_argument_error_are_printed(tmp_path: Path) -> None:
    script = tmp_path / "export.py"
    script.write_text(_ARGUMENT_ERROR)
    done = run_script(script, "export", "model", "bundle", "--add-profile", "cpu")
    assert _error(done, 2) == "error: --add-profile: found cpu, expected another one; nothing was kept"
