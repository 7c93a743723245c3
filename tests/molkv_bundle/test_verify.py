"""`verify` reads every byte and names the damage."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from molkv_bundle import NO_DIGEST, Bundle, BundleError, read_manifest, verify, write_manifest
from molkv_export import export
from molkv_export.commands import cli


@pytest.fixture
def bundle(bundles: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(bundles("molkv"), tmp_path / "bundle")


def _flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 16
    path.write_bytes(data)


def test_a_manifest_is_the_same_after_reading_and_writing(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    write_manifest(msgspec.structs.replace(read_manifest(bundle), sha256=NO_DIGEST), bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    assert pickle.loads(pickle.dumps(Bundle(bundle).manifest)) == read_manifest(bundle)


def test_a_sound_bundle_has_no_findings_and_every_byte_was_read(bundle: Path) -> None:
    read: list[int] = []
    totals: set[int] = set()
    result = verify(bundle, lambda count, total: (read.append(count), totals.add(total)))
    assert result.findings == []
    size = sum(path.stat().st_size for path in bundle.iterdir())
    hashed = size - (bundle / "manifest.json").stat().st_size
    assert (result.files, result.size, sum(read), totals) == (5, size, hashed, {hashed})


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_damaged_file_is_named(name: str, bundle: Path) -> None:
    _flip(bundle / name, 500)
    (finding,) = verify(bundle).findings
    assert finding.startswith(f"{bundle / name}: has sha256 ")


def test_damaged_records_are_named_with_their_token_ids(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoints("molkv"), bundle, shard_size=60_000)
    shard = bundle / "experts-00002-of-00003.safetensors"
    _flip(shard, 4096 + 3 * 1472 + 9, 4096 + 5 * 1472)
    assert [finding.partition(" fails")[0] for finding in verify(bundle).findings] == [
        f"{shard}: record 3 (token id 40)",
        f"{shard}: record 5 (token id 42)",
    ]


def test_a_long_list_of_damaged_records_is_shortened(bundle: Path) -> None:
    shard = bundle / "experts-00001-of-00001.safetensors"
    _flip(shard, *range(4096, shard.stat().st_size, 1440))
    findings = verify(bundle).findings
    assert len(findings) == 11
    assert findings[-1].endswith("87 more records are damaged")


def test_a_damaged_header_is_named(bundle: Path) -> None:
    _flip(bundle / "experts-00001-of-00001.safetensors", 30)
    (header,) = verify(bundle).findings
    assert "experts-00001-of-00001.safetensors: the layout in its header differs from that in the manifest" in header


def test_an_unlisted_file_is_named(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert verify(bundle).findings == [f"{bundle / 'notes.txt'}: is not part of the bundle"]


def test_a_name_with_a_line_break_forges_no_finding(bundle: Path) -> None:
    (bundle / "x\nDAMAGED forged").write_text("mine")
    assert verify(bundle).findings == [f"{bundle}/x\\nDAMAGED forged: is not part of the bundle"]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini", "._manifest.json"])
def test_system_files_are_ignored(name: str, bundle: Path) -> None:
    (bundle / name).write_text("x")
    assert verify(bundle).findings == []
    (bundle / name).unlink()
    (bundle / name).mkdir()
    assert verify(bundle).findings == [f"{bundle / name}: is not part of the bundle"]


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        verify(tmp_path)


def test_the_command_prints_the_findings_and_exits_with_1(bundle: Path) -> None:
    done = CliRunner().invoke(cli, ["verify", str(bundle)])
    assert done.exit_code == 0
    assert f"{bundle}: {len(list(bundle.iterdir()))} files, " in done.stdout
    assert "all as exported" in done.stdout
    _flip(bundle / "model.onnx", 500)
    done = CliRunner().invoke(cli, ["verify", str(bundle)])
    assert done.exit_code == 1
    assert f"DAMAGED {bundle / 'model.onnx'}: has sha256" in done.stdout
