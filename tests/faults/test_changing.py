"""Checkpoints that change while they are read: the export fails and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import molkv_export.exporter as exporting
from molkv_bundle import CheckpointError
from molkv_export import add_profile, export, validate
from molkv_export.checkpoints import Checkpoint
from molkv_export.parity import validate as validating
from molkv_export.parity.compared_texts import QUICK
from molkv_export.tables import table_writer

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH = "pytorch_model.bin"
CHANGED = r": was changed while it was being read; stop the program that writes to it and run the command again"


def _as_one_file(_folder: Path) -> str:
    return WEIGHTS


def _as_shards(folder: Path) -> str:
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    names = load((folder / "model-1.safetensors").read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")}))
    return "model-1.safetensors"


def _as_torch(folder: Path) -> str:
    torch.save(load((folder / WEIGHTS).read_bytes()), folder / TORCH)
    (folder / WEIGHTS).unlink()
    return TORCH


@pytest.fixture
def folder(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(checkpoints("molkv"), tmp_path / "checkpoint")
    shutil.copy(checkpoints("molkv") / "config.json", folder / "tokenizer_config.json")  # any JSON
    return folder


def _other(path: Path) -> bytes:
    """Return the content of another checkpoint of the same model, in the layout of this file."""
    if path.suffix == ".json":
        return path.read_bytes() + b"\n"
    data = bytearray(path.read_bytes())
    if path.suffix == ".bin":
        data[len(data) // 2] ^= 1  # in the middle of some tensor
        return bytes(data)
    tensors = load(bytes(data))
    return save({name: tensor * 1.5 for name, tensor in tensors.items()})


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def _replace(path: Path, content: bytes) -> None:
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


def _keep_time(path: Path, content: bytes) -> None:
    """Overwrite a file and keep its time, as `rsync --inplace --times` does from a file of the same age."""
    before = path.stat()
    _overwrite(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = (_overwrite, _replace, _keep_time)


def _before(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[], None], call: int = 1) -> None:
    """Make a change just before the n-th call of a function."""
    original, calls = getattr(owner, name), []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            change()
        return original(*arguments, **options)

    patch.setattr(owner, name, wrapper)


# Before the checkpoint is hashed, after that, while its rows are read, and before the golden vectors.
MOMENTS = (
    (Checkpoint, "sha256", 1),
    (exporting, "resume_export", 1),
    (table_writer, "fill", 3),
    (exporting, "write_golden", 1),
)


def _export(folder: Path) -> None:
    export(folder, folder.parent / "bundle", shard_size=30_000)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", [_as_one_file, _as_shards, _as_torch])
def test_weights_that_change_end_the_export(
    layout: Callable[[Path], str],
    change: Callable[[Path, bytes], None],
    moment: tuple[Any, str, int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = folder / layout(folder)
    other = _other(path)
    _before(monkeypatch, moment[0], moment[1], lambda: change(path, other), moment[2])
    if moment[1] == "sha256" and change is not _replace:
        # Everything is read after the change, so the bundle is that of the new bytes.
        _export(folder)
        monkeypatch.undo()
        export(folder, folder.parent / "expected", shard_size=30_000)
        files = [sorted((folder.parent / name).glob("experts-*")) for name in ("bundle", "expected")]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
        return
    with pytest.raises(CheckpointError, match=CHANGED):
        _export(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("moment", MOMENTS[1:], ids=lambda moment: moment[1])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", INDEX])
def test_small_files_that_change_or_appear_end_the_export(
    name: str, moment: tuple[Any, str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == INDEX:
        _as_shards(folder)
    path = folder / name
    other = _other(path) if path.exists() else b'{"eos_token_id": 5}'
    _before(monkeypatch, moment[0], moment[1], lambda: _replace(path, other), moment[2])
    with pytest.raises(CheckpointError, match=rf"{name}{CHANGED}"):
        _export(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", [_as_one_file, _as_shards, _as_torch])
def test_rewriting_the_same_bytes_is_not_a_change(
    layout: Callable[[Path], str],
    change: Callable[[Path, bytes], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout(folder)
    export(folder, folder.parent / "expected", shard_size=30_000)
    for owner, name, call in MOMENTS:
        _before(
            monkeypatch, owner, name, lambda: [change(path, path.read_bytes()) for path in [*folder.iterdir()]], call
        )
    _export(folder)
    same = [{p.name: p.read_bytes() for p in (folder.parent / name).iterdir()} for name in ("bundle", "expected")]
    assert same[0] == same[1]


def test_a_shard_made_from_other_bytes_is_not_reused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the weights, interrupt the export, and change them back. Only shards of the first bytes are reused."""
    export(folder, folder.parent / "expected", shard_size=30_000)
    path = folder / WEIGHTS
    first, other = path.read_bytes(), _other(path)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        _before(patch, table_writer, "fill", lambda: _overwrite(path, other), 4)
        _before(patch, table_writer, "fill", interrupt, 9)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            _export(folder)
    _overwrite(path, first)
    _export(folder)
    same = [{p.name: p.read_bytes() for p in (folder.parent / name).iterdir()} for name in ("bundle", "expected")]
    assert same[0] == same[1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_profile_is_not_added_from_weights_that_change(
    change: Callable[[Path, bytes], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(folder)
    bundle, path = folder.parent / "bundle", folder / WEIGHTS
    before, other = (bundle / "manifest.json").read_bytes(), _other(path)
    _before(monkeypatch, exporting, "save_graphs", lambda: change(path, other))
    with pytest.raises(CheckpointError, match=CHANGED):
        add_profile(folder, bundle, "coreml")
    assert (bundle / "manifest.json").read_bytes() == before


def test_validate_refuses_weights_that_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _export(folder)
    path = folder / WEIGHTS
    other = _other(path)
    _before(monkeypatch, validating, "continuations", lambda: _overwrite(path, other))
    with pytest.raises(CheckpointError, match=CHANGED):
        validate(folder.parent / "bundle", folder, scope=QUICK)
