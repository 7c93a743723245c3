"""Bundles made by an attacker: matching checksums, hostile contents."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from molkv_bundle import Bundle, BundleError, MolkvError, TensorFile
from molkv_runtime import ExpertStore, Generator
from tests.manifests import edit_manifest, replace_file, seal_manifest

SHARD = "experts-00001-of-00001.safetensors"


@pytest.fixture
def bundle(bundles: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(bundles("molkv"), tmp_path / "bundle")


# --- graphs that refer to other files, or run loops


def _edit_graph(bundle: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    edit(model)
    replace_file(bundle, "model.onnx", model.SerializeToString())


def _point_to(location: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return edit


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "model.onnx", SHARD, "./model.onnx.data", "../bundle/model.onnx.data", ""]
)
def test_weights_outside_the_folder_of_the_graph_are_refused(location: str, bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(bytes(100_000))
    _edit_graph(bundle, _point_to(location))
    with pytest.raises(BundleError, match=r"has weights in .*, expected 'model.onnx.data' in the same folder"):
        Generator(bundle)


def _in_a_node(tensor: TensorProto) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


@pytest.mark.parametrize("location", ["../secret", "model.onnx.data"])
def test_external_weights_inside_a_node_are_refused(location: str, bundle: Path) -> None:
    tensor = TensorProto(data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    _edit_graph(bundle, _in_a_node(tensor))
    with pytest.raises(BundleError, match="has a tensor in another file, expected it in the graph"):
        Generator(bundle)


def _endless_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("ours", "f", [], [], [], [helper.make_opsetid("", 22)]))


@pytest.mark.parametrize(("edit", "what"), [(_endless_loop, "a loop or a branch"), (_function, "a function")])
def test_a_graph_with_loops_or_functions_is_refused(edit: Any, what: str, bundle: Path) -> None:
    _edit_graph(bundle, edit)
    with pytest.raises(BundleError, match=f"model.onnx: contains {what}"):
        Generator(bundle)


def test_a_field_that_is_longer_than_the_file_is_refused(bundle: Path) -> None:
    replace_file(bundle, "model.onnx", b"\x3a\xff\xff\xff\xff\x7f" + bytes(100))
    with pytest.raises(BundleError, match=r"model\.onnx: is not an ONNX file"):
        Generator(bundle)


# --- manifests


def _raw(bundle: Path, edit: Callable[[str], str]) -> None:
    """Change the text of the manifest and write its new checksum."""
    path = bundle / "manifest.json"
    before = path.read_text()
    after = edit(before)
    assert after != before
    seal_manifest(path, after)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"vocab_size": 97', '"vocab_size": 97, "vocab_size": 97'),
        lambda text: text.replace('"stride"', '"stride": 64, "stride"'),
    ],
)
def test_a_duplicate_key_is_refused(edit: Callable[[str], str], bundle: Path) -> None:
    """Two readers could take different values of the key."""
    _raw(bundle, edit)
    with pytest.raises(BundleError, match=r"manifest.json: the key '(vocab_size|stride)' appears twice"):
        Bundle(bundle)


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "1" * 5000, "1" + "0" * 400 + ".0", '"\\ud800"'])
def test_invalid_numbers_are_refused(value: str, bundle: Path) -> None:
    _raw(bundle, lambda text: text.replace('"rope_theta": 10000.0', f'"rope_theta": {value}'))
    with pytest.raises(MolkvError) as caught:
        Bundle(bundle)
    assert "\n" not in str(caught.value)


# Fields that a driver does not read, or that only limit it. Other sizes follow from the graph and the files.
HARMLESS = {
    ("graphs", "cpu", "block_size"),  # describes how weights were rounded; the graph does not change
    *(
        ("model", name)
        for name in (
            "intermediate_size",
            "expert_intermediate_size",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
            "expert_window",
            "head_dim",  # 0 means the default
        )
    ),
    *(("generation", "sampling", name) for name in ("temperature", "top_k", "repetition_penalty")),
}


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**63, 10**30, -1, 0, True, None, "64", 1.5, []], ids=str)
def test_no_number_of_a_manifest_can_take_memory_or_crash(value: Any, bundle: Path) -> None:
    """Put the value in the place of each number. Opening and generating may take 500 MiB of address space."""
    list(Generator(bundle).stream([[1, 2, 3]], max_new_tokens=3))
    paths = list(_numbers(json.loads((bundle / "manifest.json").read_text())))
    assert len(paths) > 60
    text, accepted = (bundle / "manifest.json").read_text(), set()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 500 * 2**20, hard))
    try:
        for path in paths:
            edit_manifest(bundle, lambda manifest, path=path: _set(manifest, path, value))
            with contextlib.suppress(MolkvError):
                list(Generator(bundle).stream([[1, 2, 3]], max_new_tokens=3))
                accepted.add(path)
            (bundle / "manifest.json").write_text(text)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    unchanged = {path for path in paths if _get(json.loads(text), path) == value}
    assert accepted <= HARMLESS | unchanged


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path
    for key, item in items:
        yield from _numbers(item, (*path, key))


def _get(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _set(value: Any, path: tuple[Any, ...], new: Any) -> None:
    _get(value, path[:-1])[path[-1]] = new


def test_a_shape_that_is_consistent_but_larger_than_the_files_is_refused_without_allocating(bundle: Path) -> None:
    def enlarge(manifest: dict[str, Any]) -> None:
        rows, table = 2**31 - 1, manifest["tables"]["experts"]
        manifest["model"]["vocab_size"] = table["rows"] = table["shards"][0]["count"] = rows

    edit_manifest(bundle, enlarge)
    with pytest.raises(BundleError, match="has 283456 bytes, expected 6184752907456"):
        ExpertStore(Bundle(bundle))


def test_a_bundle_that_is_a_pipe_or_a_device_does_not_hang(bundle: Path) -> None:
    (bundle / SHARD).unlink()
    subprocess.run(["mkfifo", bundle / SHARD], check=True)
    with pytest.raises(BundleError, match="is not a regular file"):
        Bundle(bundle)
    (bundle / "manifest.json").unlink()
    subprocess.run(["mkfifo", bundle / "manifest.json"], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "molkv_export.commands", "inspect", bundle], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1


# --- shards


def _header(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a shard, keep the size of the file, and write the new checksums."""
    data = (bundle / SHARD).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    replace_file(bundle, SHARD, data[:8] + text + data[8 + length :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h["records"].update(dtype="F32"),
        lambda h: h["records"].update(shape=[97 * 2880]),
        lambda h: h["records"].update(shape=[2880, 97]),
        lambda h: h["records"].update(shape=[-97, -2880]),
        lambda h: h["records"].update(data_offsets=[-1, 97 * 2880 - 1]),
        lambda h: h["records"].update(data_offsets=[1, 97 * 2880 + 1]),
        lambda h: h["records"].update(data_offsets=[2**64, 2**64 + 97 * 2880]),
        lambda h: h["records"].update(surprise=1),
        lambda h: h.pop("records"),
        lambda h: h.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}) or h.pop("__metadata__"),
        lambda h: h["__metadata__"].update(format="other"),
        lambda h: h["__metadata__"].update(layout="[" * 2000),
        lambda h: h["__metadata__"].update(
            layout=h["__metadata__"]["layout"].replace('"first_row":0', '"first_row":1')
        ),
        lambda h: h["__metadata__"].update(layout=5),
    ],
)
def test_a_shard_header_that_differs_from_the_manifest_is_refused(edit: Any, bundle: Path) -> None:
    _header(bundle, edit)
    with pytest.raises(BundleError, match=SHARD):
        ExpertStore(Bundle(bundle))


def test_a_header_with_a_duplicate_key_is_refused(bundle: Path) -> None:
    data = (bundle / SHARD).read_bytes()
    changed = data.replace(b'"dtype":"U8",', b'"dtype":"U8","dtype":"U8",', 1).replace(b" " * 13, b"", 1)
    assert len(changed) == len(data)
    replace_file(bundle, SHARD, changed)
    with pytest.raises(BundleError, match="the key 'dtype' appears twice"):
        ExpertStore(Bundle(bundle))


@pytest.mark.parametrize("length", [0, 7, 2**31, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(length: int, bundle: Path) -> None:
    data = (bundle / SHARD).read_bytes()
    replace_file(bundle, SHARD, length.to_bytes(8, "little") + data[8:])
    with pytest.raises(BundleError, match=SHARD):
        ExpertStore(Bundle(bundle))


def test_a_shape_that_would_take_hours_to_multiply_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "U8", "shape": [2**31 - 1] * 100_000, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleError, match="has 100000 dimensions, expected at most 8"):
        TensorFile(tmp_path / "x.safetensors", BundleError)


def test_the_error_for_an_unknown_dtype_names_the_known_ones(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(BundleError, match="has dtype 'F4', which is unknown; write the tensor as F32, F16 or BF16"):
        TensorFile(tmp_path / "x.safetensors", BundleError)
