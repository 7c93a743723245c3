"""Output folders that cannot be replaced are refused before any work. Empty folders are used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import Bundle, OutputError
from molkv_export import GraphOptions, add_profile, export, package
from molkv_export.atomic_folder import atomic_folder
from molkv_export.corpus import Corpus
from molkv_export.parity.report import check_report_folder
from molkv_export.training.loop import TrainOptions, train
from tests.models import CONFIGS

SYSTEM_FILES = (".DS_Store", "Thumbs.db", "Desktop.ini", "._manifest.json")


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


@pytest.fixture(scope="module")
def phone(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bundle that can be packaged. Tests must not change it."""
    folder = tmp_path_factory.mktemp("phone") / "bundle"
    export(checkpoints("molkv"), folder, profiles=["cpu", "coreml"], graph=GraphOptions(chunk_lengths=(1,)))
    return folder


MISSING = Path("missing")
# The functions that make a folder, by the name of their command. Their input is missing or empty, so that each ends
# with another error as soon as it begins to work.
WRITERS: dict[str, Callable[[Path], object]] = {
    "export": lambda out: export(MISSING, out, force=True),
    "package": lambda out: package(MISSING, out, target="ios", force=True),
    "train": lambda out: train(CONFIGS["molkv"], out, TrainOptions(steps=1), corpus=Corpus([], []), force=True),
    "validate": check_report_folder,
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_mount_point_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == disk)
    with pytest.raises(
        OutputError, match="disk: is a mount point, which cannot be replaced; choose a folder inside it"
    ):
        WRITERS[command](disk)
    assert list(tmp_path.iterdir()) == [disk]


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("name", [".", "..", "../here", "../../outer", "../here/inner/.."])
def test_the_current_directory_is_refused_before_the_work(
    name: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "outer" / "here"
    (here / "inner").mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match=r"is the current directory or one of its parents|ends in '\.\.'; pass"):
        WRITERS[command](Path(name))
    assert sorted(tmp_path.rglob("*")) == [here.parent, here, here / "inner"]


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long_is_named_in_the_error(
    length: int,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x" * length
    with pytest.raises(OutputError, match=rf"^{name}: cannot be written \(File name too long\); .* a shorter name$"):
        WRITERS[command](Path(name))
    with (
        pytest.raises(OutputError, match=rf"^{name}: cannot be written \(File name too long\); .* a shorter name"),
        atomic_folder(Path(name), is_ours=lambda _: True),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_that_gets_a_profile_is_checked_before_the_work(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(phone, tmp_path / "bundle")
    monkeypatch.chdir(bundle)
    with pytest.raises(OutputError, match="bundle: is the current directory or one of its parents"):
        add_profile(MISSING, bundle, "nnapi")


@pytest.mark.parametrize("files", [(), SYSTEM_FILES])
def test_an_empty_folder_is_used_without_force(
    files: tuple[str, ...], checkpoint: Path, phone: Path, tmp_path: Path
) -> None:
    for name in ("bundle", "package"):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("x")
    export(checkpoint, tmp_path / "bundle")
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "manifest.json",
        *Bundle(tmp_path / "bundle").manifest.files,
    }
    package(phone, tmp_path / "package", target="ios")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "package"]


def test_a_link_to_an_empty_folder_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(OutputError, match="link: exists already"):
        export(checkpoint, tmp_path / "link")
    with pytest.raises(OutputError, match="link: is not a folder"):
        export(checkpoint, tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_system_files_are_removed_with_the_replaced_folder(
    name: str, phone: Path, checkpoint: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(phone, tmp_path / "bundle")
    package(phone, tmp_path / "package", target="android", profile="coreml")
    (bundle / name).write_text("x")
    for folder in ("package", "package/asset-packs/molkv_1/src"):
        (tmp_path / folder / name).write_text("x")
    add_profile(checkpoint, bundle, "nnapi", graph=GraphOptions(chunk_lengths=(1,)))
    assert not (bundle / name).exists()
    (bundle / name).write_text("x")
    export(checkpoint, bundle, force=True)
    assert not (bundle / name).exists()
    package(phone, tmp_path / "package", target="ios", force=True)
    assert not list((tmp_path / "package").rglob(name))


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_a_folder_with_the_name_of_a_system_file_is_not_replaced(
    name: str, phone: Path, checkpoint: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(phone, tmp_path / "bundle")
    (bundle / name).mkdir()
    with pytest.raises(OutputError, match="holds files that molkv-export did not write"):
        export(checkpoint, bundle, force=True)


def test_a_system_file_written_during_an_export_is_not_listed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import molkv_export.exporter as exporting

    original = exporting.write_golden

    def leave(source: Any, bundle: Bundle, open_store: Any) -> None:
        original(source, bundle, open_store)
        (bundle.path / ".DS_Store").write_text("x")

    monkeypatch.setattr(exporting, "write_golden", leave)
    assert ".DS_Store" not in export(checkpoint, tmp_path / "bundle").files
