"""The exporter reads a bundle in the Hugging Face cache, whose files are links, and does not change it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import verify
from molkv_export import GraphOptions, add_profile, export, inspect, package, validate
from molkv_export.atomic_folder import copy_file, link_or_copy
from molkv_export.packaging import GraphFormat
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.runners import ONNX_REFERENCE
from molkv_runtime import Target, selftest
from tests.linked import LAYOUTS, hugging_face_cache, linked

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two profiles; the tests must not change it."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    export(checkpoints("molkv"), folder, profiles=["cpu", "coreml"], graph=GraphOptions(chunk_lengths=(1, 4)))
    return folder


def _inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("provider", ["cpu", ONNX_REFERENCE])
def test_a_bundle_of_links_is_validated_layer_by_layer(
    provider: str, layout: str, plain: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = linked(plain, tmp_path, layout)
    scope = Scope(sequences=1, continuations=1, new_tokens=4)
    report = validate(folder, checkpoints("molkv"), scope=scope, target=Target(provider), with_bisection=True)
    assert report.failures == []


def test_a_bundle_of_links_is_inspected(plain: Path, tmp_path: Path) -> None:
    assert inspect(hugging_face_cache(plain, tmp_path)).checks == inspect(plain).checks


@pytest.mark.parametrize("graph_format", ["onnx", "ort"])
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_a_package_holds_copies_not_links(
    layout: str | None, graph_format: GraphFormat, plain: Path, tmp_path: Path
) -> None:
    folder = linked(plain, tmp_path / "links", layout) if layout else plain
    package(folder, tmp_path / "out", target="ios", graph_format=graph_format)
    files = [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in files)
    assert {path.stat().st_nlink for path in files} == {1}
    assert _inodes(tmp_path / "out").isdisjoint(_inodes(folder))
    [bundle] = (tmp_path / "out").glob("*.bundle")
    assert verify(bundle).findings == []
    if graph_format == "onnx":
        assert selftest(bundle).failures == []


def test_a_profile_is_added_to_a_snapshot_without_touching_the_cache(
    plain: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    snapshot = hugging_face_cache(plain, tmp_path)
    blobs = snapshot.parent.parent / "blobs"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in blobs.iterdir()}
    add_profile(checkpoints("molkv"), snapshot, "nnapi", graph=GraphOptions(chunk_lengths=(1, 4)))
    assert not any(path.is_symlink() for path in snapshot.iterdir())
    assert _inodes(snapshot).isdisjoint(_inodes(blobs))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in blobs.iterdir()} == before
    assert selftest(snapshot, profile="nnapi").failures == []
    assert verify(snapshot).findings == []


def test_a_file_with_other_names_is_copied_into_the_bundle_that_replaces_it(
    plain: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    shared, own = "model.onnx.data", "model.onnx"
    (tmp_path / "backup").hardlink_to(bundle / shared)
    inodes = {name: (bundle / name).stat().st_ino for name in (shared, own)}
    add_profile(checkpoints("molkv"), bundle, "nnapi", graph=GraphOptions(chunk_lengths=(1, 4)))
    assert (bundle / shared).stat().st_ino != inodes[shared]
    assert (bundle / own).stat().st_ino == inodes[own]
    assert (tmp_path / "backup").read_bytes() == (bundle / shared).read_bytes()


@pytest.mark.parametrize("way", ["call", "no call", "fails", "short"])
@pytest.mark.parametrize("size", [0, 5, 3_000_000])
def test_a_copy_is_complete_without_special_system_calls(
    size: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    if way == "no call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif way == "fails":

        def fail(*_: int) -> int:
            raise OSError(95, "not supported")

        monkeypatch.setattr(os, "copy_file_range", fail, raising=False)
    elif way == "short":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    for copy in (copy_file, link_or_copy):
        copy(tmp_path / "link", tmp_path / "copy")
        assert not (tmp_path / "copy").is_symlink()
        assert (tmp_path / "copy").read_bytes() == content
        assert (tmp_path / "copy").stat().st_ino != (tmp_path / "file").stat().st_ino
        (tmp_path / "copy").unlink()
