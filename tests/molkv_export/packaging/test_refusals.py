"""Bundles that cannot be packaged are refused, and an existing package stays unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import BundleError, OutputError, RequestError, read_manifest
from molkv_export import package
from molkv_export.packaging import Limits
from molkv_export.tables.plan import plan_shards
from tests.manifests import edit_manifest

SMALL = Limits(file=6_000_000, pack=12_000_000, upfront=25_000_000, later=20_000_000)


def test_force_replaces_a_package_and_nothing_else(phone: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    package(phone(), out, target="android")
    with pytest.raises(OutputError, match=r"out: exists already; pass --force to replace it"):
        package(phone(), out, target="ios")
    package(phone(), out, target="ios", force=True)
    assert not (out / "asset-packs").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files that molkv-export did not"):
        package(phone(), out, target="ios", force=True)
    with pytest.raises(OutputError, match="holds files that molkv-export did not"):
        package(phone(), phone(), target="ios", force=True)


def test_a_missing_profile_is_refused(bundles: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no graph for profile 'nnapi'; available: cpu.*--add-profile nnapi"):
        package(bundles("molkv"), tmp_path / "out", target="android", profile="nnapi")
    assert list(tmp_path.iterdir()) == []


def test_ort_format_is_refused_for_target_native(phone: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="graph_format: found ort, expected onnx for target native"):
        package(phone(), tmp_path / "out", target="native", graph_format="ort")
    assert list(tmp_path.iterdir()) == []


def test_float16_is_refused_for_android_and_ort_format(phone: Callable[..., Path], tmp_path: Path) -> None:
    bundle = phone("molkv", "float16")
    with pytest.raises(RequestError, match=r"computes in float16, expected float32 for android"):
        package(bundle, tmp_path / "out", target="android", profile="coreml")
    with pytest.raises(RequestError, match=r"computes in float16, expected float32 for graph format ort"):
        package(bundle, tmp_path / "out", target="ios", graph_format="ort")
    assert package(bundle, tmp_path / "out", target="ios").profile == "coreml"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(1000, 10**9, 10**9, 10**9), r"has \d+ bytes .*, expected at most 1000 .*smaller --dense-dtype"),
        (Limits(10**9, 10**9, 1000, 1000), r"would have .*, expected at most 2.0 KiB, .*smaller --experts-dtype"),
    ],
)
def test_a_package_above_the_limits_of_the_app_store_is_refused(
    limits: Limits, message: str, phone: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        package(phone(), tmp_path / "out", target="android", limits=limits)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_limit_below_one_record_is_refused(phone: Callable[..., Path]) -> None:
    with pytest.raises(RequestError, match=r"limits\.shard: found 5000 bytes, expected at least"):
        plan_shards(read_manifest(phone()).experts, 5000, "limits.shard")


@pytest.mark.parametrize("name", ["model.nnapi.data", "model.nnapi.4.onnx", "experts-00001-of-00001.safetensors"])
def test_a_damaged_bundle_is_not_packaged(name: str, phone: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(phone(), bundle)
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    for graph_format in ("onnx", "ort"):
        with pytest.raises(BundleError, match=name):
            package(bundle, tmp_path / "out", target="android", graph_format=graph_format)
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_damaged_record_is_not_repacked(trained: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained, bundle)
    path = bundle / "experts-00001-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"token id 4095\) fails its checksum"):
        package(bundle, tmp_path / "out", target="android", limits=SMALL)


@pytest.mark.parametrize("name", ['a"); evil("', "${evil}", ".hidden", "a b", "a\n"])
def test_file_names_that_build_tools_could_misread_are_refused(
    name: str, phone: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(phone(), bundle)
    (bundle / name).write_text("x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": digest}}))
    with pytest.raises(BundleError, match="expected letters, digits, dots, - and _ only"):
        package(bundle, tmp_path / "out", target="ios")


def test_inputs_that_differ_from_those_of_the_model_are_refused(phone: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(phone(), bundle)
    edit_manifest(bundle, lambda m: m["graphs"]["coreml"]["files"][1]["inputs"][0].update(name="| evil |"))
    with pytest.raises(BundleError, match=r"model.coreml.4.onnx: its inputs in the manifest differ from those"):
        package(bundle, tmp_path / "out", target="ios")
