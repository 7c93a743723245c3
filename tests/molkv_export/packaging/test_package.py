"""The contents of a package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from molkv_bundle import MANIFEST, Bundle, read_manifest, verify
from molkv_export import package
from molkv_export.commands.package import package_command
from molkv_export.packaging import LIMITS, Limits, Platform
from molkv_export.packaging import content as packing
from molkv_export.tables.plan import plan_shards
from molkv_runtime import ExpertStore, selftest
from tests.manifests import edit_manifest

pytestmark = pytest.mark.slow

CONFORMANCE = Path(__file__).parents[3] / "runtimes" / "conformance" / "bundles"
SMALL = Limits(file=6_000_000, pack=12_000_000, upfront=25_000_000, later=20_000_000)


def assembled(packaged: Path, folder: Path) -> Path:
    """Copy the files of all asset packs into one folder, as in the app."""
    folder.mkdir()
    for path in packaged.glob("asset-packs/*/src/main/assets/molkv/*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_asset_packs_hold_a_bundle_of_one_profile_that_passes_its_selftest(
    phone: Callable[..., Path], tmp_path: Path
) -> None:
    package(phone(), tmp_path / "out", target="android")
    bundle = assembled(tmp_path / "out", tmp_path / "bundle")
    assert list(read_manifest(bundle).graphs) == ["nnapi"]
    assert verify(bundle).findings == []
    result = selftest(bundle)
    assert (result.profile, result.failures) == ("nnapi", [])


@pytest.mark.parametrize("target", ["ios", "native"])
def test_a_package_of_gemma_4_passes_its_selftest(target: Platform, tmp_path: Path) -> None:
    package(CONFORMANCE / "gemma4", tmp_path / "out", target=target)
    bundle = tmp_path / "out" / "molkv.bundle"
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {path.name for path in files(bundle)}
    assert selftest(bundle).failures == []


def test_the_folder_for_ios_is_a_bundle_of_one_profile_that_passes_its_selftest(
    phone: Callable[..., Path], tmp_path: Path
) -> None:
    info = package(phone(), tmp_path / "out", target="ios")
    assert [part.folder for part in info.parts] == ["molkv.bundle"]
    bundle = tmp_path / "out" / "molkv.bundle"
    assert list(read_manifest(bundle).graphs) == ["coreml"]
    assert verify(bundle).findings == []
    assert selftest(bundle).failures == []


@pytest.mark.parametrize("target", ["ios", "native"])
def test_profile_cpu_is_packaged_for_every_target(target: Platform, phone: Callable[..., Path], tmp_path: Path) -> None:
    info = package(phone(), tmp_path / "out", target=target, profile="cpu")
    assert (info.profile, [graph.length for graph in info.graphs]) == ("cpu", [0])
    assert selftest(tmp_path / "out" / "molkv.bundle").failures == []


def test_a_static_profile_can_be_chosen(phone: Callable[..., Path], tmp_path: Path) -> None:
    assert package(phone(), tmp_path / "out", target="android", profile="coreml").profile == "coreml"


@pytest.mark.parametrize(
    ("target", "profiles", "packaged"),
    [
        ("android", ["coreml", "cpu", "nnapi"], "nnapi"),
        ("ios", ["coreml", "cpu", "nnapi"], "coreml"),
        ("native", ["coreml", "cpu", "nnapi"], "cpu"),
        ("android", ["coreml", "cpu"], "cpu"),
        ("ios", ["cpu", "nnapi"], "cpu"),
        ("native", ["coreml", "nnapi"], "nnapi"),
        ("android", ["coreml"], "coreml"),
    ],
)
def test_the_best_profile_for_the_target_is_packaged(
    target: Platform, profiles: list[str], packaged: str, phone: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(phone(), tmp_path / "bundle"))
    edit_manifest(bundle, lambda m: m.update(graphs={name: m["graphs"][name] for name in profiles}))
    info = package(bundle, tmp_path / "out", target=target)
    assert info.profile == packaged
    usual = {"android": "nnapi", "ios": "coreml", "native": "cpu"}[target]
    notes = [note for note in info.notes if "profile" in note]
    expected = f"the bundle has no profile {usual}, so the package has profile {packaged}"
    assert notes == ([] if packaged == usual else [expected])
    assert (f"**Note:** {expected}." in (tmp_path / "out" / "README.md").read_text()) == bool(notes)


def test_a_store_is_divided_into_packs_within_the_limits_with_equal_records(trained: Path, tmp_path: Path) -> None:
    info = package(trained, tmp_path / "out", target="android", limits=SMALL)
    assert [part.delivery for part in info.parts] == ["install-time", "install-time", "fast-follow"]
    for part in info.parts:
        folder = tmp_path / "out" / part.folder
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == part.files
        assert sum(part.files.values()) <= SMALL.pack
        assert max(part.files.values()) <= SMALL.file
        build = (tmp_path / "out" / "asset-packs" / part.name / "build.gradle.kts").read_text()
        assert "packName.set(project.name)" in build  # the name of its folder
        assert f'deliveryType.set("{part.delivery}")' in build
    assert "The example opens install-time packs only." in (tmp_path / "out" / "README.md").read_text()
    bundle = assembled(tmp_path / "out", tmp_path / "bundle")
    assert MANIFEST in info.parts[0].files
    assert len(read_manifest(bundle).experts.shards) == 4
    assert verify(bundle).findings == []
    with ExpertStore(Bundle(trained)) as before, ExpertStore(Bundle(bundle)) as after:
        ids = np.arange(before.vocab_size)
        assert before.gather(ids).tobytes() == after.gather(ids).tobytes()


def test_repacking_reads_a_little_at_a_time(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BYTES_AT_ONCE", 200_000)
    reads = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(sum(map(len, buffers)))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    bundle = Bundle(trained)
    store = plan_shards(bundle.manifest.experts, 5_000_000, "largest")
    tracemalloc.start()
    try:
        packing.write_shards(bundle, store, tmp_path, lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the shards have 22 MB
    assert sum(reads) == sum(bundle.manifest.files[shard.file].size for shard in bundle.manifest.experts.shards)
    assert max(reads) <= 200_000


def test_large_shards_fill_a_pack_evenly() -> None:
    assert LIMITS["android"].shard == 500_000_000


def test_no_file_holds_a_path_of_this_machine(trained: Path, tmp_path: Path) -> None:
    package(trained, tmp_path / "out", target="android", graph_format="ort")
    shards = {shard.file for shard in read_manifest(trained).experts.shards}
    for path in files(tmp_path / "out"):
        if path.name not in shards:
            content = path.read_bytes()
            assert not any(str(folder).encode() in content for folder in (tmp_path, trained.parent, Path.home()))


def feeds(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {tensor.name: generator.standard_normal(tensor.shape, np.float32) for tensor in session.get_inputs()}


def test_graphs_in_ort_format_compute_the_same(trained: Path, tmp_path: Path) -> None:
    info = package(trained, tmp_path / "out", target="android", graph_format="ort")
    bundle = assembled(tmp_path / "out", tmp_path / "bundle")
    for file, graph in zip(Bundle(trained).graph().files, info.graphs, strict=True):
        source = onnxruntime.InferenceSession(str(trained / file.file))
        converted = onnxruntime.InferenceSession(str(bundle / graph.file))
        assert [t.shape for t in converted.get_inputs()] == [t.shape for t in source.get_inputs()]
        given = feeds(source)
        for ours, theirs in zip(converted.run(None, given), source.run(None, given), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_graph_of_profile_cpu_in_ort_format_computes_the_same(phone: Callable[..., Path], tmp_path: Path) -> None:
    package(phone(), tmp_path / "out", target="ios", profile="cpu", graph_format="ort")
    source = onnxruntime.InferenceSession(str(phone() / "model.onnx"))
    converted = onnxruntime.InferenceSession(str(tmp_path / "out" / "molkv.bundle" / "model.ort"))
    sizes = {"batch": 2, "length": 3, "max_length": 8, "blocks": 2, "block_length": 3, "window_experts": 4}
    generator = np.random.default_rng(0)
    given = {}
    for tensor in source.get_inputs():
        shape = [sizes.get(size, size) for size in tensor.shape]
        given[tensor.name] = generator.standard_normal(shape, np.float32)
    given["position_ids"] = np.tile(np.arange(3), (2, 1))
    given["seqlens_k"], given["total_sequence_length"] = np.full(2, 2, np.int32), np.full(1, 3, np.int32)
    given["logits_to_keep"] = np.ones(1, np.int64)
    outputs = zip(converted.run(None, given), source.run(None, given), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in outputs)


def test_a_package_in_ort_format_has_a_correct_manifest(phone: Callable[..., Path], tmp_path: Path) -> None:
    info = package(phone(), tmp_path / "out", target="ios", graph_format="ort")
    bundle = tmp_path / "out" / info.parts[0].folder
    assert verify(bundle).findings == []
    graph = read_manifest(bundle).graphs["coreml"]
    assert [file.file for file in graph.files] == ["model.coreml.1.ort", "model.coreml.4.ort", "model.coreml.16.ort"]
    assert not list(bundle.glob("*.onnx"))
    assert not list(bundle.glob("model*.data"))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "`required_operators.config` lists their operators" in readme


def test_the_operators_of_a_minimal_build_are_listed_without_gemm(phone: Callable[..., Path], tmp_path: Path) -> None:
    package(phone(), tmp_path / "out", target="ios", graph_format="ort")
    lines = (tmp_path / "out" / "required_operators.config").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.]+;\d+;[\w,]+", line) for line in lines)
    operators = {name for line in lines for name in line.split(";")[2].split(",")}
    assert {"MatMul", "Softmax", "ReduceMean"} <= operators
    assert "Gemm" not in operators


def test_the_command_lists_the_parts_of_the_package(phone: Callable[..., Path], tmp_path: Path) -> None:
    arguments = [str(phone()), str(tmp_path / "out"), "--target", "android", "--graph-format", "ort"]
    done = CliRunner().invoke(package_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"out: [\d.]+ [KM]iB for android, profile nnapi; README.md has the next steps", done.output)
    assert re.search(r"molkv_1: \d+ files, [\d.]+ [KM]iB, install-time", done.output)
    assert re.search(
        r"each graph file holds its own copy of the weights: model.nnapi.1.ort [\d.]+ KiB, model.nnapi.4.ort",
        done.output,
    )


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(package_command, [str(tmp_path), str(tmp_path / "out"), "--target", "windows"])
    assert done.exit_code == 2
    assert "'windows' is not one of 'android', 'ios', 'native', 'web'" in done.output


_WITHOUT_EXPORTER = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors"):
    sys.modules[name] = None  # as if it were not installed
from molkv_export.commands.package import package_command
package_command.main(sys.argv[1:])
"""


@pytest.mark.parametrize("graph_format", ["onnx", "ort"])
def test_packaging_needs_neither_torch_nor_onnx(graph_format: str, phone: Callable[..., Path], tmp_path: Path) -> None:
    arguments = [str(phone()), str(tmp_path / "out"), "--target", "ios", "--graph-format", graph_format]
    command = [sys.executable, "-c", _WITHOUT_EXPORTER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
