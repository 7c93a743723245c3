"""Adding a profile to a bundle changes nothing else, and does not overwrite concurrent changes."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import Bundle, CheckpointError, OutputError
from molkv_export import GraphOptions, add_profile, export, inspect, package, validate
from molkv_export.parity.compared_texts import QUICK, Scope
from molkv_export.source.hashes import check_source
from molkv_export.tables.resume import JOURNAL
from molkv_runtime import selftest

pytestmark = pytest.mark.slow


def test_a_profile_is_added_and_nothing_else_changes(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    export(checkpoints("molkv"), tmp_path / "one")
    both = export(checkpoints("molkv"), tmp_path / "both", profiles=["cpu", "coreml"])
    before = (tmp_path / "one" / "model.onnx").stat().st_ino
    added = add_profile(checkpoints("molkv"), tmp_path / "one", "coreml")
    assert (added.graphs, added.files, added.tables) == (both.graphs, both.files, both.tables)
    assert (tmp_path / "one" / "model.onnx").stat().st_ino == before  # no byte was copied
    assert selftest(tmp_path / "one", profile="coreml").failures == []
    assert selftest(tmp_path / "one").failures == []
    with pytest.raises(OutputError, match=r"already has profile 'coreml'; pass --force to replace it"):
        add_profile(checkpoints("molkv"), tmp_path / "one", "coreml")
    graph = GraphOptions("float16", context_length=30)
    again = add_profile(checkpoints("molkv"), tmp_path / "one", "coreml", graph=graph, force=True)
    assert again.graphs["coreml"].context_length == 30
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"manifest.json", *again.files}
    assert selftest(tmp_path / "one", profile="coreml").failures == []


def test_a_profile_is_not_added_to_a_bundle_that_changes_meanwhile(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")

    def another(*arguments: Any) -> None:
        monkeypatch.undo()
        check_source(*arguments)
        add_profile(checkpoints("molkv"), bundle, "coreml")

    monkeypatch.setattr("molkv_export.exporter.check_source", another)
    with pytest.raises(OutputError, match=r"was changed by another process while this command was running; run"):
        add_profile(checkpoints("molkv"), bundle, "nnapi")
    assert list(Bundle(bundle).manifest.graphs) == ["cpu", "coreml"]


def test_a_profile_is_not_added_while_a_killed_export_can_be_resumed(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    (tmp_path / ".bundle.partial").mkdir()
    (tmp_path / ".bundle.partial" / JOURNAL).write_text("{}")
    with pytest.raises(OutputError, match=r"holds an unfinished export to .*; run the same export command again"):
        add_profile(checkpoints("molkv"), bundle, "coreml")
    assert (tmp_path / ".bundle.partial" / JOURNAL).exists()


def test_files_are_copied_where_they_cannot_be_linked(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    add_profile(checkpoints("molkv"), bundle, "coreml")
    assert selftest(bundle, profile="coreml").failures == []


def test_a_profile_of_another_checkpoint_is_not_added(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    with pytest.raises(CheckpointError, match=r"pass the checkpoint that the bundle was exported from"):
        add_profile(checkpoints("molkv-square"), tmp_path / "bundle", "coreml")
    assert selftest(tmp_path / "bundle").failures == []


def test_validate_reads_one_profile_only(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    graph = GraphOptions(context_length=30)
    export(checkpoints("molkv"), tmp_path / "bundle", profiles=["cpu", "coreml"], graph=graph)
    scope = Scope(sequences=1, continuations=1, new_tokens=4)
    report = validate(tmp_path / "bundle", checkpoints("molkv"), scope=scope, profile="coreml")
    assert (report.profile, report.failures) == ("coreml", [])
    assert report.sizes.ram_kv_cache == 2 * 4 * 3 * 2 * 16 * 30
    (tmp_path / "bundle" / "model.coreml.32.onnx").unlink(missing_ok=True)
    path = tmp_path / "bundle" / "model.coreml.1.onnx"
    path.write_bytes(bytes(path.stat().st_size))
    report = validate(tmp_path / "bundle", checkpoints("molkv"), scope=scope, profile="cpu")
    assert report.failures == []


def test_paths_may_be_strings(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint, bundle = str(checkpoints("molkv")), str(tmp_path / "bundle")
    export(checkpoint, bundle)
    add_profile(checkpoint, bundle, "nnapi", graph=GraphOptions(chunk_lengths=(1,)))
    assert validate(bundle, checkpoint, scope=QUICK).failures == []
    assert validate(bundle, against=bundle, scope=QUICK).failures == []
    assert list(inspect(bundle).graphs) == ["cpu", "nnapi"]
    package(bundle, str(tmp_path / "app"), target="android")
