"""An expert store that several processes write in parts, and the bundle that is made of the parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from molkv_bundle import ArgumentError, Bundle, OutputError
from molkv_export import export, write_part
from molkv_export.atomic_folder import parts_of
from molkv_export.commands import cli
from molkv_export.tables import resume, table_writer
from molkv_export.tables.resume import JOURNAL
from tests.molkv_export.interrupts import interrupt_fill

SHARD_SIZE = 9_000
PARTS = 3


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


@pytest.fixture
def whole(bundles: Callable[..., Path]) -> Path:
    """The bundle that one process writes."""
    return bundles("molkv", "float16", shard_size=SHARD_SIZE)


def _write(checkpoint: Path, bundle: Path, number: int, parts: int = PARTS, **options: Any) -> None:
    write_part(checkpoint, bundle, (number, parts), **{"shard_size": SHARD_SIZE, **options})


def _assemble(checkpoint: Path, bundle: Path, **options: Any) -> None:
    export(checkpoint, bundle, assemble=True, **{"shard_size": SHARD_SIZE, **options})


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["molkv", "molkv/lookup"])
def test_parts_make_the_bundle_of_one_process(
    name: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path
) -> None:
    whole = bundles(name, "float16", shard_size=SHARD_SIZE)
    for number in (3, 1, 2):
        _write(checkpoints(name), tmp_path / "bundle", number)
    _assemble(checkpoints(name), tmp_path / "bundle")
    assert _contents(tmp_path / "bundle") == _contents(whole)
    assert _left(tmp_path) == ["bundle"]


def test_a_part_has_every_nth_shard_and_a_second_call_keeps_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(checkpoint, tmp_path / "bundle", 2)
    folder = parts_of(tmp_path / "bundle") / "2-of-3"
    numbers = [int(path.name.split("-")[1]) for path in sorted(folder.glob("*.safetensors"))]
    assert numbers == list(range(2, int(next(folder.glob("*.safetensors")).name[17:22]) + 1, 3))
    monkeypatch.setattr(table_writer, "fill", None)  # a shard that is written again fails
    _write(checkpoint, tmp_path / "bundle", 2)
    next(folder.glob("*.safetensors")).write_bytes(b"damaged")
    with pytest.raises(TypeError):
        _write(checkpoint, tmp_path / "bundle", 2)


def test_a_killed_part_is_resumed(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_fill(3, patch)
        with pytest.raises(KeyboardInterrupt):
            _write(checkpoint, bundle, 1, 1)
    finished = _left(parts_of(bundle) / "1-of-1")
    assert JOURNAL in finished
    with pytest.raises(OutputError, match=r"shards are missing \(\d+, .*write the parts that hold them with --s"):
        _assemble(checkpoint, bundle)
    _write(checkpoint, bundle, 1, 1)
    _assemble(checkpoint, bundle)
    assert _contents(bundle) == _contents(whole)


def test_an_interrupted_assembly_continues(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for number in (1, 2):
        _write(checkpoint, bundle, number, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molkv_export.exporter.save_graphs", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            _assemble(checkpoint, bundle)
    _assemble(checkpoint, bundle)
    assert _contents(bundle) == _contents(whole)
    assert _left(tmp_path) == ["bundle"]


def _interrupt(*_args: Any, **_options: Any) -> None:
    raise KeyboardInterrupt


# --- parts that do not fit together


@pytest.mark.parametrize(
    ("options", "different"),
    [
        ({"experts_dtype": "int8"}, "--experts-dtype is float16, expected int8"),
        ({"shard_size": 10_000}, "--shard-size is 9000, expected 10000"),
    ],
)
def test_parts_with_other_options_are_an_error(
    options: dict[str, Any], different: str, checkpoint: Path, tmp_path: Path
) -> None:
    _write(checkpoint, tmp_path / "bundle", 1, 1)
    with pytest.raises(OutputError, match=rf"1-of-1: was written with another .*: {different}; remove it and write"):
        _assemble(checkpoint, tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()


def test_parts_of_another_version_of_the_exporter_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "__version__", "9.9")
        _write(checkpoint, tmp_path / "bundle", 1, 1)
    with pytest.raises(OutputError, match=r"was written with another molkv-export: molkv-export is 9\.9, expected 0"):
        _assemble(checkpoint, tmp_path / "bundle")


def test_parts_of_another_checkpoint_are_an_error(
    checkpoint: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    _write(checkpoints("molkv-gated"), tmp_path / "bundle", 1, 1)
    with pytest.raises(OutputError, match=r"was written with another config\.json, model\.safetensors: config"):
        _assemble(checkpoint, tmp_path / "bundle")


def test_a_shard_of_another_size_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    _write(checkpoint, tmp_path / "bundle", 1, 1)
    shard = next(parts_of(tmp_path / "bundle").glob("*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OutputError, match=rf"1-of-1: {shard.name} has \d+ bytes, expected \d+; remove .*1-of-1 and "):
        _assemble(checkpoint, tmp_path / "bundle")


def test_more_parts_than_shards_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"shards: found 1/999, expected I/N with 1 <= I <= N <= \d+"):
        _write(checkpoint, tmp_path / "bundle", 1, 999)
    assert _left(tmp_path) == []


def test_a_part_that_another_process_writes_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    errors: list[str] = []
    original = table_writer.fill

    def fill(*arguments: Any) -> None:
        if not errors:
            command = [sys.executable, "cli.py", "export", checkpoint, tmp_path / "bundle", "--shards", "1/1"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            errors.append(done.stderr.splitlines()[-1])
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_writer, "fill", fill)
        _write(checkpoint, tmp_path / "bundle", 1, 1)
    assert "is being written by another process" in errors[0]


def test_the_manifest_names_different_cpus(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    for number, kind in ((1, "x86_64 AVX2"), (2, "aarch64 DEFAULT")):
        monkeypatch.setattr(resume, "machine", lambda kind=kind: kind)
        _write(checkpoint, bundle, number, 2)
    _assemble(checkpoint, bundle)
    assert Bundle(bundle).manifest.provenance.tools["cpus"] == "x86_64 AVX2; aarch64 DEFAULT"


# --- the command line


def test_the_command_line_writes_parts_and_assembles_them(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        command = ["export", str(checkpoint), str(tmp_path / "bundle"), "--shard-size", str(SHARD_SIZE), *options]
        return CliRunner().invoke(cli, command)

    done = run("--shards", "1/2", "--json")
    assert msgspec.json.decode(done.stdout)["part"] == "1/2"
    assert "2-of-2: part 2/2, " in run("--shards", "2/2").stdout
    assert run("--assemble").exit_code == 0
    ours, theirs = _contents(tmp_path / "bundle"), _contents(whole)
    del ours["manifest.json"], theirs["manifest.json"]  # they have the commands
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "3"], "found '3', expected I/N such as 3/8, with I from 1 to N"),
        (["--shards", "3/2"], "found '3/2', expected I/N"),
        (
            ["--shards", "1/2", "--dense-dtype", "int8"],
            "'--dense-dtype': found with --shards, which writes only a part",
        ),
        (["--shards", "1/2", "--assemble"], "'--assemble': found with --shards"),
        (["--add-profile", "nnapi", "--assemble"], "'--assemble': found with --add-profile"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(cli, ["export", str(checkpoint), str(tmp_path / "bundle"), *options])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_part_without_room_says_so(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(OutputError, match=r"bundle: needs .* of disk space, but 10 B are free"):
        _write(checkpoint, tmp_path / "bundle", 1, 1)
