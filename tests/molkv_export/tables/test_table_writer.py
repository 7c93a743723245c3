"""The bytes of the expert store, as docs/bundle-format.md describes them."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from molkv_bundle import (
    Bundle,
    CheckpointError,
    FileInfo,
    MoleConfig,
    RecordChecksum,
    RequestError,
    RowDtype,
    record_dtype,
)
from molkv_export import export
from molkv_export.families import open_checkpoint
from molkv_export.modeling.molkv import KeyValueNetworks
from molkv_export.tables import table_writer
from molkv_export.tables.direct_file import DirectFile, aligned_zeros
from molkv_export.tables.plan import Memory, plan_table
from molkv_export.tables.rows import row_source
from molkv_export.tables.table_writer import write_shard, write_table
from molkv_runtime import ExpertStore
from tests.models import CONFIGS, random_model, save_checkpoint


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_record_read_by_hand_holds_embedding_keys_values_and_checksum(
    bundles: Callable[..., Path], dtype: str
) -> None:
    """This test follows the description of the format and uses no code of our reader."""
    bundle = bundles("molkv", dtype)
    manifest = json.loads((bundle / "manifest.json").read_text())
    config, table = manifest["model"], manifest["tables"]["experts"]
    records = random_model(CONFIGS["molkv"]).records(torch.arange(97))
    token = 61
    shard = next(s for s in table["shards"] if s["first_row"] <= token < s["first_row"] + s["count"])
    raw = (bundle / shard["file"]).read_bytes()
    (header_length,) = struct.unpack_from("<Q", raw)
    data_start = 8 + header_length
    assert data_start == shard["data_offset"]
    assert data_start % 4096 == 0
    start = data_start + (token - shard["first_row"]) * table["stride"]
    record = raw[start : start + table["stride"]]
    covered = bytes.fromhex(table["id"]) + struct.pack("<Q", token) + record[:-4]
    assert struct.unpack("<I", record[-4:])[0] == zlib.crc32(covered)

    item, at = {"float32": 4, "float16": 2}[dtype], 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        values = np.frombuffer(record, f"<f{item}", count, at).reshape(shape)
        at += count * item
        return values

    d, n, dk = config["hidden_size"], config["num_experts"], config["expert_key_size"]
    as_stored = getattr(torch, dtype)
    assert np.array_equal(take(d), records.embedding[token].to(as_stored).numpy())
    for layer in config["expert_layers"]:
        key, value = records.layers[layer]["key"], records.layers[layer]["value"]
        # The exporter computes rows in other batch sizes than this test, so float32 rounding may differ.
        tolerance = 1e-5 if dtype == "float32" else 4e-3
        np.testing.assert_allclose(take(n, dk), key[token].to(as_stored).numpy(), atol=tolerance)
        np.testing.assert_allclose(take(n, d), value[token].to(as_stored).numpy(), atol=tolerance)
    assert not any(record[at:-4])


@pytest.mark.parametrize(("payload_floats", "stride"), [(15, 64), (16, 128), (4094, 16384 - 0), (4096, 20480)])
def test_the_stride_is_padded_to_64_bytes_or_to_a_page_from_16_kib_on(payload_floats: int, stride: int) -> None:
    config = MoleConfig(
        model_type="mole",
        vocab_size=1,
        hidden_size=payload_floats,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=1,
        num_experts=0,
    )
    assert record_dtype(config, "float32").itemsize == stride


def test_any_safetensors_reader_opens_a_shard(bundles: Callable[..., Path]) -> None:
    bundle = bundles("mole", "float16")
    tensors = load_file(bundle / "experts-00001-of-00001.safetensors")
    assert list(tensors) == ["records"]
    assert tensors["records"].dtype == np.uint8
    assert len(tensors["records"]) == 97


def test_shards_stay_below_the_given_size_and_hold_every_id_once(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path
) -> None:
    limit = 40_000
    export(checkpoints("molkv/lookup"), tmp_path / "bundle", experts_dtype="float32", shard_size=limit)
    bundle = Bundle(tmp_path / "bundle")
    shards = bundle.manifest.experts.shards
    assert len(shards) > 3
    assert all((bundle.path / shard.file).stat().st_size <= limit for shard in shards)
    ids = np.random.default_rng(0).permutation(97)
    with ExpertStore(bundle) as sharded, ExpertStore(Bundle(bundles("molkv/lookup"))) as whole:
        ours, theirs = sharded.gather(ids), whole.gather(ids)
        assert ours.tobytes() == theirs.tobytes()


def test_a_shard_size_below_one_record_and_an_unknown_dtype_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"shard_size: found 4200 bytes, expected at least \d+"):
        export(checkpoints("molkv"), tmp_path / "bundle", shard_size=4200)
    with pytest.raises(
        RequestError, match="experts_dtype: found int7, expected one of float32, float16, int8, int4, nf4"
    ):
        export(checkpoints("molkv"), tmp_path / "bundle", experts_dtype="int7")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_lookup_form_and_training_form_give_the_same_store(bundles: Callable[..., Path]) -> None:
    ids = np.arange(97)
    for name in ("molkv", "mole"):
        with (
            ExpertStore(Bundle(bundles(name))) as trained,
            ExpertStore(Bundle(bundles(f"{name}/lookup"))) as looked_up,
        ):
            ours, theirs = trained.gather(ids), looked_up.gather(ids)
            np.testing.assert_array_equal(ours["embedding"], theirs["embedding"])
            for field in ours["layers"].dtype.names or ():
                np.testing.assert_allclose(ours["layers"][field], theirs["layers"][field], rtol=1e-4, atol=1e-5)


def test_values_that_float16_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    model = random_model(CONFIGS["molkv"])
    model.model.layers[1].experts.networks[2].down_proj.weight *= 1e6
    checkpoint = save_checkpoint(model, tmp_path / "checkpoint")
    message = (
        r"expert_value of layer 1 of token id \d+ has values up to .*, which are too large for float16; .* float32"
    )
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "bundle")
    export(checkpoint, tmp_path / "bundle", experts_dtype="float32")


def test_an_export_gives_the_same_bytes_twice(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    for name, memory in (("a", 2**30), ("b", 38 * 2**20)):
        export(checkpoints("molkv"), tmp_path / name, max_memory=memory)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def _write_in_slabs_of_two(checkpoint: Path, folder: Path, finished: dict[str, FileInfo]) -> None:
    """Write a store of several shards, each of many slabs; put finished shards into the given dictionary."""
    with open_checkpoint(checkpoint) as source:
        store = plan_table(source.config, "float16", 20_000)
        assert store.shards[0].count > 8
        write_table(
            row_source(source),
            store,
            Memory(2, 1, 0),
            folder,
            shards=store.shards,
            finish=finished.__setitem__,
            advance=lambda _: None,
        )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", ["molkv", "mole", "molkv/lookup"])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    name: str, dtype: RowDtype, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    with open_checkpoint(checkpoints(name)) as source:
        rows, table = row_source(source), plan_table(source.config, dtype, 2**20)
        rows.ids_at_once = 8  # many pieces; the last one is shorter
        found = set()
        for threads, slab_ids in ((1, 8), (1, 97), (2, 16), (3, 96), (7, 56)):
            [shard] = table.shards
            slabs = [aligned_zeros(slab_ids, record_dtype(source.config, dtype)) for _ in range(4)]
            found.add(write_shard(rows, table, shard, slabs, threads, tmp_path, lambda _: None))
        assert len(found) == 1


@pytest.mark.parametrize("threads", [2, 8])  # 8: more than the two pieces of a network
def test_pieces_are_computed_at_the_same_time_with_two_networks_in_memory(
    threads: int, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most, original = weakref.WeakSet[Any](), list[int](), KeyValueNetworks.load_state_dict
    together = threading.Barrier(2, timeout=20)  # the error of a barrier that one thread reaches alone ends the test

    def load(networks: Any, *arguments: Any, **options: Any) -> Any:
        alive.add(networks)
        most.append(len(alive))
        return original(networks, *arguments, **options)

    def embedding(start: int, stop: int) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            together.wait()
        return read(start, stop)

    with open_checkpoint(checkpoints("molkv")) as source:
        rows = row_source(source)
        rows.ids_at_once = 32
        records = np.zeros(64, record_dtype(source.config, "float16"))
        monkeypatch.setattr(KeyValueNetworks, "load_state_dict", load)
        read = rows.embedding
        monkeypatch.setattr(rows, "embedding", embedding)
        table_writer.fill(records, rows, "float16", 0, threads)
    assert len(most) > 8
    assert max(most) <= 2


def test_shards_are_finished_in_order_with_their_size_and_hash(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    finished: dict[str, FileInfo] = {}
    _write_in_slabs_of_two(checkpoints("molkv"), tmp_path, finished)
    assert len(finished) > 3
    assert list(finished) == sorted(path.name for path in tmp_path.iterdir())
    for name, info in finished.items():
        data = (tmp_path / name).read_bytes()
        assert info == FileInfo(size=len(data), sha256=hashlib.sha256(data).hexdigest())


class _FailingHash:
    """SHA-256 that fails in the middle of a shard."""

    def __init__(self) -> None:
        self.update = _fail_once(lambda _: None)

    def hexdigest(self) -> str:
        return 64 * "0"


def _fail_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function fail in its third call, which for most stages is within the first shard."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.EIO, "a stage has failed")
        return function(*arguments)

    return failing


@pytest.mark.parametrize("stage", ["fill", "checksum", "write", "hash", "sync", "finish"])
def test_an_error_in_any_thread_reaches_the_caller_and_closes_the_files(
    stage: str, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: dict[str, FileInfo] = {}
    match stage:
        case "fill":
            monkeypatch.setattr(table_writer, "fill", _fail_once(table_writer.fill))
        case "checksum":
            monkeypatch.setattr(RecordChecksum, "of", _fail_once(RecordChecksum.of))
        case "write" | "sync":
            monkeypatch.setattr(DirectFile, stage, _fail_once(getattr(DirectFile, stage)))
        case "hash":
            monkeypatch.setattr(hashlib, "sha256", _FailingHash)
        case "finish":
            finished = _FailingDict()
    gc.collect()
    before = _open_files()
    with pytest.raises(OSError, match="a stage has failed"):
        _write_in_slabs_of_two(checkpoints("molkv"), tmp_path, finished)
    assert _open_files() == before
    assert len(finished) == (2 if stage in ("sync", "finish") else 0)


class _FailingDict(dict[str, FileInfo]):
    def __setitem__(self, name: str, info: FileInfo) -> None:
        if len(self) == 2:
            raise OSError(errno.EIO, "a stage has failed")
        super().__setitem__(name, info)


def _open_files() -> set[str]:
    """Return the files that this process has open; empty if the system does not report them."""
    folder = Path("/proc/self/fd")
    return {os.path.realpath(path) for path in folder.iterdir()} if folder.exists() else set()
