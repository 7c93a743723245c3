"""Bundles that are incomplete, damaged or inconsistent are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from molkv_bundle import Bundle, BundleError, ProviderError, graph_interface, model_config
from molkv_runtime import ExpertStore, Generator
from tests.manifests import edit_manifest, replace_file

SHARD = "experts-00001-of-00001.safetensors"


@pytest.fixture
def bundle(bundles: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(bundles("molkv"), tmp_path / "bundle")


def _refused(bundle: Path, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        list(Generator(bundle).stream([[1, 2, 3]], max_new_tokens=3))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [SHARD, "model.onnx", "model.onnx.data"])
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    _refused(bundle, f"{name}: is missing; the manifest lists it with")


@pytest.mark.parametrize("name", [SHARD, "model.onnx", "model.onnx.data"])
def test_a_truncated_file_is_named(name: str, bundle: Path) -> None:
    os.truncate(bundle / name, (bundle / name).stat().st_size - 1)
    _refused(bundle, f"{name}: has ")
    _refused(bundle, "the file is truncated or was replaced")


def test_a_flipped_bit_in_a_record_is_found_when_it_is_read(bundle: Path) -> None:
    store = Bundle(bundle).manifest.experts
    with (bundle / SHARD).open("r+b") as file:
        start = (bundle / SHARD).stat().st_size - 97 * store.stride
        file.seek(start + 2 * store.stride + 300)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    _refused(bundle, f"{SHARD}: record 2 (token id 2) fails its checksum")
    assert len(ExpertStore(Bundle(bundle)).gather(np.array([1, 3]))) == 2


def test_a_changed_graph_is_found_by_its_hash(bundle: Path) -> None:
    data = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(data.replace(b"dense_graph", b"dense_grapf"))
    _refused(bundle, "model.onnx: has sha256")


def test_changed_dense_weights_are_found_by_their_hash(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    _refused(bundle, "model.onnx.data: has sha256")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    _refused(tmp_path, "manifest.json: cannot be read (No such file or directory); expected a folder made by")


def _consistently(manifest: dict[str, Any], field: str, value: int) -> None:
    """Change a field of the configuration and everything derived from it, except the graph."""
    manifest["model"][field] = value
    config = model_config(manifest["model"], Path("manifest.json"))
    graph = manifest["graphs"]["cpu"]
    graph["context_length"], graph["expert_window"] = config.max_position_embeddings, config.expert_window
    file = graph["files"][0]
    file["inputs"], file["outputs"] = msgspec.to_builtins(graph_interface(config, "float32"))


_ANEW = "schema_version: found {}, expected 4; export it again with: molkv-export export CHECKPOINT "


def _table(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["tables"]["experts"]


def _rename_file(manifest: dict[str, Any], name: str) -> None:
    manifest["files"][name] = manifest["files"].pop(SHARD)
    manifest["tables"]["experts"]["shards"][0]["file"] = name


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda m: m.update(schema_version=1),
            _ANEW.format(1),
        ),
        (
            lambda m: m.pop("schema_version"),
            _ANEW.format("none"),
        ),
        (lambda m: m.update(schema_version=5), "schema_version: found 5, expected 4; a newer molkv-export made it"),
        (lambda m: m.pop("tables"), "missing required field `tables`"),
        (lambda m: m.update(surprise=1), "unknown field `surprise`"),
        (lambda m: m["model"].update(expert_window=0), "expert_window: found 0"),
        (lambda m: m["model"].update(hidden_size=48), "tables.experts.fields: found another layout than the model"),
        (lambda m: _table(m).update(stride=64), "97 records of 64 bytes from byte 4096 on"),
        (lambda m: _table(m)["fields"][1].update(offset=0), "tables.experts.fields: found another layout"),
        (lambda m: _table(m)["fields"].pop(), "tables.experts.fields: found another layout"),
        (lambda m: _table(m)["shards"][0].update(count=96), "96 records of 2880 bytes from byte 4096 on"),
        (lambda m: _table(m)["shards"][0].update(count=0), f"shard {SHARD} holds 0 rows, expected 1 or more"),
        (lambda m: _table(m)["shards"][0].update(first_row=1), f"shard {SHARD} starts at row 1, expected 0"),
        (lambda m: _table(m).update(shards=[]), "rows: found 97, and 0 rows in the shards, expected 97"),
        (lambda m: _table(m)["shards"][0].update(file="model.onnx"), "shard model.onnx has "),
        (lambda m: _table(m)["shards"][0].update(file="other"), "files: 'other' is missing, but another field"),
        (lambda m: _rename_file(m, f"../bundle/{SHARD}"), "expected plain names of files inside the bundle"),
        (lambda m: _rename_file(m, "/etc/passwd"), "expected plain names of files inside the bundle"),
        (lambda m: _rename_file(m, ".."), "expected plain names of files inside the bundle"),
        (lambda m: m["graphs"].clear(), "graphs: found no profile, expected at least one"),
        (
            lambda m: m["graphs"]["cpu"]["files"][0]["inputs"].pop(),
            "its inputs in the manifest differ from those that the model",
        ),
        (lambda m: m["model"].update(num_key_value_heads=4), "differ from those that the model's configuration"),
        (lambda m: m["model"].update(head_dim=32), "differ from those that the model's configuration"),
        (lambda m: m["model"].update(num_hidden_layers=4), "differ from those that the model's configuration"),
        (lambda m: _consistently(m, "num_key_value_heads", 4), "its inputs differ from those in the manifest"),
        (lambda m: m["files"][SHARD].update(size=-1), "has -1 bytes, expected"),
        (lambda m: m["files"]["model.onnx"].update(size=-1), "the manifest says -1"),
        *(
            (lambda m, found=found: m["files"]["model.onnx"].update(sha256=found), "- at `$.files[...].sha256`")
            for found in ("../../../x", "/tmp/movie", "", "a" * 63, "A" * 64, "a" * 64 + "\n")
        ),
        (lambda m: _table(m).update(index="hashed"), "Invalid enum value 'hashed' - at `$.tables[...].index`"),
        (lambda m: _table(m).update(id="0"), "Expected `str` matching regex"),
        (lambda m: _table(m).update(id=_table(m)["id"] + "\n"), "Expected `str` matching regex"),
        (
            lambda m: _table(m).update(id="0" * 16),
            "differs from that in the manifest: the file belongs to another bundle",
        ),
        (lambda m: _table(m).update(rows=96), "rows: found 96, and 97 rows in the shards, expected 97"),
        (lambda m: m["tables"].update(more=_table(m)), "tables: found experts, more, expected only experts"),
        (lambda m: m["tables"].update(more=m["tables"].pop("experts")), "tables: found more, expected only experts"),
        *(
            (lambda m, version=version: m["graphs"]["cpu"].update(min_onnxruntime=version), "min_onnxruntime")
            for version in ("1.x", "1.25.1\n", f"1.{'9' * 5000}.0", "1.25.100000")
        ),
        (
            lambda m: m["generation"].update(eos_token_ids=[97]),
            "generation.eos_token_ids: found 97, expected token ids from 0 to 96",
        ),
        (
            lambda m: m["generation"].update(chat_template="tokenizer_config.json"),
            "files: 'tokenizer_config.json' is missing, but another field",
        ),
        (lambda m: m["generation"].update(chat_template="model.onnx"), "Invalid enum value 'model.onnx'"),
        (lambda m: m["generation"]["sampling"].update(top_p=0), "top_p: found 0.0, expected more than 0 and at most 1"),
        (lambda m: m["generation"]["sampling"].pop("min_p"), "missing required field `min_p`"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    edit: Callable[[dict[str, Any]], object], message: str, bundle: Path
) -> None:
    edit_manifest(bundle, edit)
    _refused(bundle, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_file_that_is_not_a_manifest_is_refused(content: bytes, bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(content)
    _refused(bundle, "manifest.json")


def test_the_target_of_a_link_must_have_the_size_in_the_manifest(bundle: Path) -> None:
    (bundle / SHARD).rename(bundle.parent / "elsewhere")
    (bundle / SHARD).symlink_to(bundle.parent / "elsewhere")
    assert list(Generator(bundle).stream([[1, 2, 3]], max_new_tokens=3))
    os.truncate(bundle.parent / "elsewhere", 100)
    _refused(bundle, f"{SHARD}: has 100 bytes, the manifest says")
    (bundle / SHARD).unlink()
    (bundle / SHARD).symlink_to(bundle.parent)
    _refused(bundle, f"{SHARD}: is not a regular file")


def test_a_graph_that_is_not_onnx_is_refused_in_one_line(bundle: Path) -> None:
    for content in (b"garbage" * 100, b""):
        replace_file(bundle, "model.onnx", content)
        _refused(bundle, "model.onnx: is not an ONNX file")


def test_a_context_that_the_graph_was_not_built_for_is_refused(bundle: Path) -> None:
    edit_manifest(
        bundle,
        lambda m: (m["model"].update(max_position_embeddings=2000), m["graphs"]["cpu"].update(context_length=2000)),
    )
    with pytest.raises(BundleError, match="the dense graph fails: ") as caught:
        list(Generator(bundle).stream([[1] * 60], max_new_tokens=3))
    assert "\n" not in str(caught.value)


def test_an_invalid_tokenizer_is_refused(bundle: Path) -> None:
    replace_file(bundle, "tokenizer.json", b'{"model": 7}')
    with pytest.raises(BundleError, match=r"tokenizer.json: is not a tokenizer \("):
        list(Generator(bundle).text("def "))


def test_a_graph_for_a_newer_onnx_runtime_is_refused_before_it_is_loaded(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["graphs"]["cpu"].update(min_onnxruntime="99.1.0"))
    with pytest.raises(ProviderError, match=r"onnxruntime is [0-9.]+, expected 99\.1\.0 or newer"):
        Generator(bundle)
