"""The rules that hold for every command: exit codes, --json, --quiet and --verbose, shell completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from molkv_bundle import BundleError
from molkv_export import GraphOptions, export
from molkv_export.commands import cli
from molkv_export.corpus import Corpus
from molkv_export.training import loop
from molkv_runtime import Generator
from tests.models import STDLIB_MINI
from tests.processes import run_cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
CONFIG = STDLIB_MINI / "configs" / "molkv.json"
CORPUS = Corpus(["def f(x):\n    return x\n" * 20] * 2, ["def g(x): return x" * 20])  # instead of all modules

# Arguments of each command after its name; --json is added where the command has it.
ARGUMENTS = {
    "export": "CHECKPOINT NEW",
    "validate": "BUNDLE --checkpoint CHECKPOINT --sequences 1 --continuations 1 --new-tokens 2",
    "verify": "BUNDLE",
    "selftest": "BUNDLE",
    "bench": "BUNDLE --prompts 4 --contexts 16 --steps 2 --runs 1 --storage warm",
    "inspect": "BUNDLE",
    "run": "STDLIB --prompt def --max-new-tokens 2",
    "chat": "STDLIB --template TEMPLATE --max-new-tokens 2",
    "package": "PHONE NEW --target ios",
    "push": "BUNDLE URL",
    "providers": "",
    "train": "CONFIG NEW --steps 1 --batch-size 1 --sequence-length 8",
}
FIELDS = {  # of the JSON document: some that a script needs
    "export": {"bundle", "files", "size", "graphs", "experts_dtype"},
    "validate": {"comparisons", "weights", "records", "greedy"},
    "verify": {"files", "size", "findings"},
    "selftest": {"phases", "placements_by_length", "failures"},
    "bench": {"prefill", "decode", "bandwidth"},
    "inspect": {"model", "sizes", "graphs", "provenance"},
    "run": {"prompt", "text", "tokens", "finish", "timings"},
    "package": {"target", "parts", "graphs"},
    "push": {"url", "files", "size", "unchanged", "removed"},
    "providers": {"providers"},
    "train": {"checkpoint", "train_loss", "validation_loss", "validation_loss_experts_silenced"},
}
DETAILS = {  # with --verbose, on standard error
    "export": "checkpoint's hash: ",
    "validate": "profile cpu, provider cpu, threads one per physical core",
    "verify": "model.onnx: sha256",
    "selftest": "profile cpu, provider cpu, threads one per physical core",
    "bench": "measuring warm decode",
    "inspect": "check of operators: ",
    "run": "temperature 0 (bundle), top_k 0 (bundle)",
    "chat": "temperature 0 (bundle), top_k 0 (bundle)",
    "package": "files of the package: ",
    "push": "manifest.json: uploading ",
    "providers": "built into onnxruntime: ",
    "train": "step 1: loss",
}


def _molkv(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    done = CliRunner().invoke(cli, [str(word) for word in arguments], input="import os\n")  # a message for `chat`
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def _process(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command as a process, with `main`, which prints errors; return the same."""
    done = run_cli(*arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def phone(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phone") / "bundle"
    export(checkpoints("molkv"), folder, profiles=["coreml"], graph=GraphOptions(chunk_lengths=(1,)))
    return folder


@pytest.fixture
def places(
    bundles: Callable[..., Path],
    checkpoints: Callable[[str], Path],
    stdlib_mini_bundle: Path,
    phone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path | str]:
    """The paths for the words in capitals."""
    monkeypatch.setattr(loop, "standard_library", lambda: CORPUS)
    (tmp_path / "template").write_text("{{ messages[-1].content }}")
    return {
        "BUNDLE": bundles("molkv"),
        "STDLIB": stdlib_mini_bundle,
        "CHECKPOINT": checkpoints("molkv"),
        "MINI": STDLIB_MINI,
        "PHONE": phone,
        "CONFIG": CONFIG,
        "TEMPLATE": tmp_path / "template",
        "NEW": tmp_path / "new",
        "URL": f"file://{tmp_path}/pushed",
    }


@pytest.fixture
def run(places: dict[str, Path | str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of ARGUMENTS with more options."""

    def run(command: str, *options: str) -> tuple[int, str, str]:
        return _molkv(command, *(places.get(word, word) for word in ARGUMENTS[command].split()), *options)

    return run


def test_every_command_is_here() -> None:
    assert ARGUMENTS.keys() == DETAILS.keys() == set(cli.commands)
    assert FIELDS.keys() == {name for name, command in cli.commands.items() if _option(command, "--json")}


def _option(command: click.Command, name: str) -> click.Parameter | None:
    return next((parameter for parameter in command.params if name in parameter.opts), None)


@pytest.mark.parametrize("command", FIELDS)
def test_json_is_one_document_on_standard_output(command: str, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, errors = run(command, "--json")
    assert status == 0, errors
    assert json.loads(out).keys() >= FIELDS[command]


def test_the_json_of_the_self_test_names_every_number(run: Callable[..., tuple[int, str, str]]) -> None:
    document = json.loads(run("selftest", "--json")[1])
    assert all(phase["limits"].keys() == {"max_abs", "relative_l2"} for phase in document["phases"])
    ((length, (place,)),) = document["placements_by_length"].items()
    assert (length, place.pop("nodes") > 0) == ("0", True)
    assert place == {"provider": "CPUExecutionProvider", "partitions": 0}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_quiet_leaves_the_result_alone(command: str, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, errors = run(command, "-q")
    assert (status, errors) == (0, "")
    assert out


@pytest.mark.parametrize("command", ARGUMENTS)
def test_verbose_adds_details_on_standard_error(command: str, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, errors = run(command, "--verbose")
    assert status == 0, errors
    assert DETAILS[command] in errors
    assert DETAILS[command] not in out


@pytest.mark.parametrize("command", list(cli.commands))
def test_quiet_and_verbose_together_are_a_usage_error(command: str) -> None:
    required = {"run": ("b", "--prompt", "x"), "package": ("b", "o", "--target", "ios")}
    paths = [p.name for p in cli.commands[command].params if isinstance(p, click.Argument)]
    status, out, errors = _molkv(command, *required.get(command, paths), "-q", "-v")
    assert (status, out) == (2, "")
    assert "found --quiet and --verbose, expected at most one of them" in errors


@pytest.mark.parametrize(
    ("arguments", "option", "message"),
    [
        ("run STDLIB --prompt x --top-k -3", "--top-k", "found -3, expected 0 (off) to 2147483647"),
        ("run STDLIB --prompt x --top-p 2", "--top-p", "found 2.0, expected more than 0 and at most 1"),
        (
            "run STDLIB --prompt x --temperature nan",
            "--temperature",
            "found nan, expected 0 (greedy), or 1e-06 to 1e+06",
        ),
        ("run STDLIB --prompt x --seed -1", "--seed", "found -1, expected 0 to 18446744073709551615"),
        ("run STDLIB --prompt x --max-new-tokens 0", "--max-new-tokens", "found 0, expected 1 or more"),
        ("run STDLIB --prompt x --stop=", "--stop", "found a string of 0 characters, expected 1 to 1000 characters"),
        (f"run STDLIB --prompt x --stop {'x' * 10_000}", "--stop", "found a string of 10000 characters, expected 1 to"),
        ("run STDLIB --prompt x --logprobs 1", "--logprobs", "found without --json, expected with it: the numbers"),
        ("run STDLIB --prompt x --json --logprobs -1", "--logprobs", "found -1, expected 0 to 4096"),
        ("run STDLIB --prompt x --lookup -1", "--lookup", "found -1, expected 0 to 256"),
        ("run PHONE --prompt x --lookup 4", "--lookup", "found 4, expected 0 for profile coreml, whose graphs return"),
        ("chat STDLIB --template TEMPLATE --lookup -1", "--lookup", "found -1, expected 0 to 256"),
        ("chat STDLIB --template TEMPLATE --top-k -3", "--top-k", "found -3, expected 0 (off) to 2147483647"),
        ("chat STDLIB --template TEMPLATE --stop=", "--stop", "found a string of 0 characters, expected 1 to 1000"),
        ("run STDLIB --prompt x --threads 0", "--threads", "found 0, expected 1 to "),
        ("run STDLIB --prompt x --logit-bias 9999=1", "--logit-bias", "found token id 9999, expected 0 to 4095"),
        ("run STDLIB --prompt x --provider gpu", "--provider", "provider 'gpu' is unknown, expected one of cpu, "),
        ("run STDLIB --prompt x --provider-option a=b", "--provider-option", "found a, expected none"),
        ("push BUNDLE CONFIG", "URL", f"found {CONFIG}, expected hf://OWNER/NAME[@BRANCH], s3://BUCKET/PATH"),
        ("push BUNDLE URL --private", "--private", "found with another URL, expected hf://OWNER/NAME"),
        ("bench STDLIB --runs 0", "--runs", "found 0, expected 1 or more"),
        ("bench STDLIB --batches 0", "--batches", "found 0, expected 1 or more"),
        ("bench STDLIB --contexts 1", "--contexts", "found 1, expected 2 to 512 (the model's context)"),
        ("train CONFIG NEW --steps -1", "--steps", "found -1, expected more than 0"),
        ("train CONFIG NEW --sequence-length 513", "--sequence-length", "found 513, expected at most 512"),
        ("export MINI NEW --shard-size 100", "--shard-size", "found 100 bytes, expected at least "),
        ("export MINI NEW --max-memory 100", "--max-memory", "found 100 bytes, expected at least "),
        ("export MINI NEW --expert-window 64", "--expert-window", "found 64, expected no value for profile cpu"),
        ("export MINI NEW --profile coreml --expert-window 64", "--expert-window", "found 64, expected 1 to 32"),
        ("export MINI NEW --dense-dtype qdq-int8", "--dense-dtype", "found qdq-int8, expected one of float32, "),
        ("export MINI NEW --block-size 64", "--block-size", "found --dense-dtype float32, expected int4"),
        ("export MINI NEW --lm-head-dtype int4", "--lm-head-dtype", "found --dense-dtype float32, expected int4"),
        ("export MINI NEW --dense-dtype int4 --lm-head-dtype x", "--lm-head-dtype", "'x' is not one of 'int8', 'int4'"),
        ("export MINI STDLIB --add-profile coreml --shard-size 1GiB", "--shard-size", "found with --add-profile"),
        (
            "export MINI STDLIB --add-profile coreml --context-length 0",
            "--context-length",
            "found 0, expected 1 to 512",
        ),
        ("export MINI NEW --dense-dtype int4 --block-size 9", "--block-size", "found 9, expected one of 16, "),
        ("validate STDLIB", "--checkpoint", "found no reference, expected exactly one of --checkpoint, --against and "),
        ("validate STDLIB --against x --plot x.png", "--plot", "found --against, expected --checkpoint"),
        ("validate STDLIB --against x --plot x.png --bisect", "--bisect", "found --against, expected --checkpoint"),
        ("validate STDLIB --expected x --text y", "--text", "found with --expected, expected without it: the file of"),
        ("validate STDLIB --expected x --quick", "--quick", "found with --expected, expected without it"),
        ("validate STDLIB --expected x --quick --new-tokens 4", "--new-tokens", "found with --expected"),
        ("validate STDLIB --checkpoint MINI --plot x.doc", "--plot", "found x.doc, expected a file name that ends in"),
        ("validate STDLIB --checkpoint MINI --sequences 0", "--sequences", "found 0, expected 1 or more"),
    ],
)
def test_an_impossible_value_exits_with_2_and_names_the_option(
    arguments: str, option: str, message: str, places: dict[str, Path | str], tmp_path: Path
) -> None:
    status, out, errors = _molkv(*(places.get(word, word) for word in arguments.split()))
    assert (status, out) == (2, "")
    assert f"Invalid value for '{option}': {message}" in errors
    assert not (tmp_path / "new").exists()


def test_a_usage_error_is_one_line_that_begins_with_the_option(stdlib_mini_bundle: Path) -> None:
    prompt = ("run", stdlib_mini_bundle, "--prompt", "x")
    expected = {
        ("--top-k", "-3"): "error: --top-k: found -3, expected 0 (off) to 2147483647\n",
        ("--top-k", "x"): "error: --top-k: 'x' is not a valid integer\n",
        ("--top-q", "1"): "error: No such option '--top-q'",
    }
    for options, line in expected.items():
        status, out, errors = _process(*prompt, *options)
        assert (status, out) == (2, "")
        assert errors.startswith(line)
        assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "selftest"])
def test_an_error_before_the_progress_is_the_only_line(command: str, tmp_path: Path) -> None:
    status, out, errors = _process(command, tmp_path)
    assert (status, out) == (1, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_a_record_that_is_damaged_is_named_once_and_on_a_line_of_its_own(
    stdlib_mini_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    shard = bundle / "experts-00001-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[4096::5440] = bytes(byte ^ 1 for byte in data[4096::5440])  # a byte of each record
    shard.write_bytes(data)
    status, out, errors = _process("run", bundle, "--prompt", "def ")
    assert (status, out) == (1, "def \n")
    assert errors.startswith("error: ")
    with pytest.raises(BundleError, match=r"record \d+ \(token id \d+\) fails its checksum"):
        _molkv("bench", bundle, "--prompts", "64", "--storage", "warm")
    status, out, _ = _molkv("selftest", bundle)
    failures = [line for line in out.splitlines() if line.startswith("FAIL ")]
    assert status == 1
    assert len(set(failures)) == len(failures) > 1
    assert not any("has sha256" in failure for failure in failures)


def test_a_greedy_run_says_which_options_have_no_effect(run: Callable[..., tuple[int, str, str]]) -> None:
    plain = run("run")
    assert plain[2] == ""
    status, out, errors = run("run", "--top-p", "0.9", "--seed", "3")
    assert (status, out) == plain[:2]
    assert errors.startswith("note: at temperature 0 (greedy text) these options have no effect: --top-p, --seed; to")
    assert run("run", "--top-p", "0.9", "--temperature", "0.5")[2] == ""


def test_verbose_run_says_where_each_value_comes_from_after_the_text(stdlib_mini_bundle: Path) -> None:
    command = ["run", str(stdlib_mini_bundle), "--prompt", "def ", "--max-new-tokens", "3", "--seed", "2"]
    plain = CliRunner().invoke(cli, [*command, "--temperature", "0.5", "--logit-bias", "5=1"])
    done = CliRunner().invoke(cli, [*command, "--temperature", "0.5", "--logit-bias", "5=1", "-v"])
    for value in ("temperature 0.5 (command line)", "logit_bias 5=1 (command line)", "min_p 0 (bundle)"):
        assert value in done.stderr
    before, text, after = done.output.partition(plain.stdout)  # `output` has both streams in their order
    assert text
    assert "sampling: " in before
    assert [line.partition(" in ")[0] for line in after.splitlines()] == ["prefill: 2 tokens", "decode: 2 tokens"]


def test_a_verbose_run_that_fails_keeps_its_details(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    """Damage the record of the first generated token, so that prefill succeeds and decode fails."""
    generator = Generator(stdlib_mini_bundle)
    (first,) = generator.stream([generator.tokenizer.encode("def ").ids], max_new_tokens=1)
    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    (shard,) = generator.bundle.manifest.experts.shards
    data = bytearray((bundle / shard.file).read_bytes())
    data[4096 + first.id * generator.bundle.manifest.experts.stride] ^= 1
    (bundle / shard.file).write_bytes(data)
    status, out, errors = _process("run", bundle, "--prompt", "def ", "-v")
    assert status == 1
    assert out.startswith("def ")
    *_, prefill, error = errors.splitlines()
    assert prefill.startswith("prefill: ")
    assert f"(token id {first.id}) fails its checksum" in error


def _complete(words: str, cwd: Path) -> list[str]:
    """Return what bash is offered after some words, the last of which is not complete."""
    before = words.split(" ")
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-c",
            "import sys; sys.argv[0] = 'molkv-export'\n" + "from molkv_export.commands import main; main()",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "_MOLKV_EXPORT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(before) - 1),
        },
    )
    assert not any(line.rpartition("|")[2].strip() in ("torch", "onnx") for line in done.stderr.splitlines())
    return done.stdout.split()


def test_a_shell_completes_commands_options_values_and_paths(tmp_path: Path) -> None:
    assert set(_complete("molkv-export ", tmp_path)) == {f"plain,{name}" for name in cli.commands}
    assert _complete("molkv-export export --dense", tmp_path) == ["plain,--dense-dtype"]
    assert _complete("molkv-export run --provider c", tmp_path) == ["plain,cpu", "plain,coreml", "plain,cuda"]
    assert _complete("molkv-export verify my", tmp_path) == ["file,my"]  # bash itself lists the files
