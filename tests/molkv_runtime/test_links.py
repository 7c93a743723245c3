"""A bundle whose files are links to regular files runs. Links to anything else are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import BundleError, verify
from molkv_export import GraphOptions, export
from molkv_runtime import Generator, selftest
from tests.linked import LAYOUTS, WEIGHTS_ELSEWHERE, linked

WEIGHTS = "model.onnx.data"
SHARD = "experts-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def bundle(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bundle with two profiles. Tests must not change it."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    graph = GraphOptions(chunk_lengths=(1, 4))
    export(checkpoints("molkv"), folder, profiles=["cpu", "coreml"], graph=graph)
    return folder


def _tokens(bundle: Path, **options: Any) -> list[int]:
    return [token.id for token in Generator(bundle, **options).stream([[1, 2, 3]], max_new_tokens=8)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bundle_of_links_runs_and_is_verified(layout: str, bundle: Path, tmp_path: Path) -> None:
    folder = linked(bundle, tmp_path, layout)
    assert verify(folder).findings == []
    for profile in ("cpu", "coreml"):
        assert selftest(folder, profile=profile).failures == []
    assert _tokens(folder) == _tokens(folder, store_access="mmap") == _tokens(bundle)


def test_weights_behind_a_link_stay_mapped(bundle: Path, tmp_path: Path) -> None:
    folder = linked(bundle, tmp_path, "cache")
    generator = Generator(folder)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    assert str((folder / WEIGHTS).resolve()) in maps.read_text()
    del generator


@pytest.mark.parametrize("layout", WEIGHTS_ELSEWHERE)
def test_weights_in_a_folder_without_the_graph_are_refused(layout: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"{WEIGHTS}: is a link to .*content é, expected a file in the folder of"):
        Generator(linked(bundle, tmp_path, layout))


def test_damage_behind_a_link_is_found(bundle: Path, tmp_path: Path) -> None:
    folder = linked(bundle, tmp_path, "cache")
    for name, message in ((WEIGHTS, f"{WEIGHTS}: has sha256 "), (SHARD, "fails its checksum")):
        target = (folder / name).resolve()
        sound = target.read_bytes()
        target.write_bytes(sound[:-100] + bytes([sound[-100] ^ 1]) + sound[-99:])
        with pytest.raises(BundleError, match=message):
            list(Generator(folder).stream([[94, 95, 96]], max_new_tokens=1))
        assert message in verify(folder).findings[0].replace(str(folder) + "/", "")
        target.write_bytes(sound)


@pytest.mark.parametrize("name", [WEIGHTS, SHARD, "model.onnx"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("folder", "is not a regular file, expected a file of"),
        ("pipe", "is not a regular file, expected a file of"),
        ("/dev/zero", "is not a regular file, expected a file of"),
        ("shorter", "has 7 bytes, the manifest says"),
        ("nowhere", "is a broken link; the manifest lists it with"),
        ("itself", "is a broken link; the manifest lists it with"),
    ],
)
def test_a_link_to_anything_else_is_refused(target: str, message: str, name: str, bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "folder").mkdir()
    (tmp_path / "shorter").write_text("shorter")
    os.mkfifo(tmp_path / "pipe")
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name if target == "itself" else tmp_path / target)
    for use in (Generator, verify):
        with pytest.raises(BundleError, match=f"{name}: {message}") as caught:
            use(folder)
        assert "\n" not in str(caught.value)
