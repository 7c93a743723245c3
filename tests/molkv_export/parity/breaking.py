"""Functions that break a correct bundle of stdlib-mini, or the driver that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import molkv_bundle.bundle
import molkv_runtime.window
from molkv_bundle import Arrays, Bundle, Floats, RecordChecksum, checked_record_dtype, record_bytes, rotary_tables
from molkv_runtime.window import ExpertWindow
from tests.manifests import edit_manifest, replace_file

Apply = Callable[[Path, pytest.MonkeyPatch], None]

# --- faults in the graph


def graph(edit: Callable[[onnx.GraphProto], None]) -> Apply:
    def apply(bundle: Path, _patch: pytest.MonkeyPatch) -> None:
        model = onnx.load(bundle / "model.onnx")
        edit(model.graph)
        for name in ("model.onnx", "model.onnx.data"):
            (bundle / name).unlink()
        onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx.data")
        for name in ("model.onnx", "model.onnx.data"):
            replace_file(bundle, name, (bundle / name).read_bytes())

    return apply


def weight(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Apply:
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name.removeprefix("model.") == name)
        array = edit(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), tensor.name))

    return graph(change)


def one(index: tuple[int, ...], added: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array[index] += added
        return array

    return edit


def columns(columns: slice, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array[:, columns] *= factor
        return array

    return edit


def swap(first: str, second: str) -> Apply:
    def change(graph: onnx.GraphProto) -> None:
        a, b = (next(t for t in graph.initializer if t.name == f"model.{name}") for name in (first, second))
        a.name, b.name = b.name, a.name

    return graph(change)


def nodes(layer: int, part: str, kind: str) -> Callable[[onnx.GraphProto], list[onnx.NodeProto]]:
    return lambda graph: [n for n in graph.node if n.op_type == kind and f"layers.{layer}/{part}" in n.name]


def attribute(layer: int, part: str, kind: str, **changes: float) -> Apply:
    def change(graph: onnx.GraphProto) -> None:
        for node in nodes(layer, part, kind)(graph):
            kept = [a for a in node.attribute if a.name not in changes]
            del node.attribute[:]
            node.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in changes.items())])

    apply = graph(change)

    def unchecked(bundle: Path, patch: pytest.MonkeyPatch) -> None:
        """Let the driver load unknown attributes. Otherwise it would refuse the graph before the comparison."""
        patch.setattr(molkv_bundle.bundle, "check_graph_file", lambda *_: None)
        apply(bundle, patch)

    return unchecked


def final_eps(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if "norm" in n.output)
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-2


def ignore_mask(graph: onnx.GraphProto) -> None:
    (node,) = nodes(1, "expert_mixer", "Add")(graph)
    node.op_type = "Max"  # maximum of scores and -inf: no expert is masked


def double_feed_forward(graph: onnx.GraphProto) -> None:
    (node,) = [n for n in nodes(1, "", "Add")(graph) if "expert_mixer" not in n.name]
    node.input[1] = node.input[0]  # adds the feed-forward twice and leaves out the experts


def square_scale(graph: onnx.GraphProto) -> None:
    (node,) = nodes(2, "expert_mixer", "RotaryEmbedding")(graph)
    for index, table in enumerate(rotary_tables(np.arange(512), 32, 10_000.0), start=2):
        node.input[index] = f"squared.{index}"
        graph.initializer.append(numpy_helper.from_array(table / np.float32(32), node.input[index]))


def shift_tables(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.name.startswith("rotary_"):
            cos, sin = rotary_tables(np.arange(1, 513), 32, 10_000.0)
            shifted = cos if "cos" in tensor.name else sin
            if tensor.name.endswith("scaled"):
                shifted = shifted * np.float32(32**-0.5)
            tensor.CopyFrom(numpy_helper.from_array(shifted, tensor.name))


def rounded_to(name: str) -> Callable[[np.ndarray], np.ndarray]:
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[name]
    return lambda array: array.astype(dtype).astype(np.float32)


# --- faults in the store


def records(edit: Callable[[Any], None]) -> Apply:
    """Change all records of the only shard, with correct checksums and hashes."""

    def apply(bundle: Path, _patch: pytest.MonkeyPatch) -> None:
        opened = Bundle(bundle)
        table = opened.manifest.experts
        (shard,) = table.shards
        content = bytearray((bundle / shard.file).read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        records = np.frombuffer(content, checked_record_dtype(opened.config, table, ""), offset=start)
        edit(records)
        checksums = RecordChecksum(table)
        for index in range(len(records)):
            one = records[index : index + 1]
            one["checksum"] = checksums.of(record_bytes(one), index)
        replace_file(bundle, shard.file, bytes(content))

    return apply


def swap_experts(field: str, layer: int) -> Apply:
    def edit(records: Any) -> None:
        rows = records["layers"][field][:, layer]
        rows[:, [0, 1]] = rows[:, [1, 0]]

    return records(edit)


def scale_rows(field: str, layer: int, factor: float) -> Apply:
    def edit(records: Any) -> None:
        records["layers"][field][:, layer] *= np.float16(factor)

    return records(edit)


def swap_layers(records: Any) -> None:
    values = records["layers"]["value"]
    values[:, [0, 1]] = values[:, [1, 0]]


def shift_ids(records: Any) -> None:
    records[:] = np.roll(records, 1, axis=0)


def scale_embeddings(records: Any) -> None:
    records["embedding"] *= np.float16(1.01)


def scale_some_embeddings(records: Any) -> None:
    records["embedding"][:256] *= np.float16(1.01)  # these ids are bytes, which occur in every text


def coarse_keys(records: Any) -> None:
    keys = records["layers"]["key"]
    keys[:, 3] = np.round(keys[:, 3] * 64) / 64


# --- faults in the driver and in its configuration


def told(**changes: Any) -> Apply:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["model"].update(changes)
        for name in changes.keys() & {"expert_window"}:  # the graphs have a copy of this field
            manifest["graphs"]["cpu"][name] = changes[name]

    return lambda bundle, _patch: edit_manifest(bundle, edit)


def see_the_future(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    original = ExpertWindow.take_in

    def broken(self: ExpertWindow, *part: Any) -> Arrays:
        inputs = original(self, *part)
        return {**inputs, "expert_mask": np.zeros_like(inputs["expert_mask"])}

    patch.setattr(ExpertWindow, "take_in", broken)


def forget_mask(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    original = ExpertWindow.decode

    def broken(self: ExpertWindow, sequence: int, position: int, record: Any) -> None:
        original(self, sequence, position, record)
        self.decode_inputs["expert_mask"][sequence] = 0.0

    patch.setattr(ExpertWindow, "decode", broken)


def wrong_slot(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    original = ExpertWindow.decode

    def broken(self: ExpertWindow, sequence: int, position: int, record: Any) -> None:
        original(self, sequence, position - position % 2, record)  # every second record overwrites its neighbour

    patch.setattr(ExpertWindow, "decode", broken)


def keys_not_rotated(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    def no_rotation(positions: np.ndarray, size: int, _theta: float) -> tuple[Floats, Floats]:
        shape = len(positions), size // 2
        return np.ones(shape, np.float32), np.zeros(shape, np.float32)

    patch.setattr(molkv_runtime.window, "rotary_tables", no_rotation)


def rotated_too_far(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    original = molkv_runtime.window.rotary_tables
    patch.setattr(molkv_runtime.window, "rotary_tables", lambda p, size, theta: original(p + 1, size, theta))


def values_not_entered(_bundle: Path, patch: pytest.MonkeyPatch) -> None:
    """Lose the experts that a prompt should leave in the ring."""
    patch.setattr(ExpertWindow, "finish", lambda *_: None)
