"""Records of every format are decoded to the float32 numbers that they store."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from molkv_bundle import Floats, Records, RowDtype, ValueDecoder, record_dtype
from molkv_runtime.record_decoder import CAST_MODEL, HalfReader, RecordDecoder
from tests.models import CONFIGS


def test_the_bytes_of_the_cast_model_are_those_of_its_description() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    assert onnx.load_from_string(CAST_MODEL) == model


def test_every_float16_becomes_the_same_number_in_float32() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    out = np.empty(65536, np.float32)
    reader = HalfReader()
    for _ in range(2):  # the second call uses the first one's binding
        out[:] = 7
        reader.read(halves, out)
        np.testing.assert_array_equal(out, halves.astype(np.float32))


def _random_records(name: str, dtype: RowDtype, count: int) -> Records:
    """Return records of random bytes whose floats are finite."""
    random = np.random.default_rng(0)
    records = np.zeros(count, record_dtype(CONFIGS[name], dtype))
    fields = [records["embedding"]]
    if "layers" in (records.dtype.names or ()):
        fields += [records["layers"][field] for field in records["layers"].dtype.names or ()]
    for field in fields:
        if field.dtype.kind == "f":
            field[...] = random.standard_normal(field.shape)
        else:
            field[...] = random.integers(0, 256, field.shape).astype(np.uint8).view(field.dtype)
    return records


@pytest.mark.parametrize("out_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("dtype", get_args(RowDtype))
@pytest.mark.parametrize("name", CONFIGS)
def test_every_vector_is_decoded(name: str, dtype: RowDtype, count: int, out_dtype: type) -> None:
    records = _random_records(name, dtype, count)
    decoder = RecordDecoder(CONFIGS[name], dtype)
    embeddings = np.empty(records["embedding"].shape, out_dtype)
    decoder.read(records, "embedding", embeddings)
    assert np.array_equal(embeddings, records["embedding"].astype(out_dtype))
    if "layers" not in (records.dtype.names or ()):
        return
    layers = records["layers"]
    scale = layers["scale"] if "scale" in (layers.dtype.names or ()) else None
    for vector in (v for v in CONFIGS[name].record_vectors() if v.name in (layers.dtype.names or ())):
        expected = np.empty((*layers.shape, *vector.shape), np.float32)
        ValueDecoder(dtype).decode(layers[vector.name], scale if vector.scale else None, expected)
        for part in (layers, layers[:, 0], layers[:2].swapaxes(0, 1)):
            for step in (1, 2):  # contiguous, and with gaps
                out = np.full((step * len(part), *part.shape[1:], *vector.shape), 7, out_dtype)
                decoder.read(part, vector.name, out[::step])
                assert np.array_equal(out[::step], _like(part, layers, expected).astype(out_dtype))
                assert (out[1::2] == 7).all() or step == 1


def _like(part: Records, layers: Records, expected: Floats) -> Floats:
    """Return the expected numbers of a part of the layers."""
    if part.shape == layers.shape:
        return expected
    return expected[:, 0] if part.ndim == 1 else expected[:2].swapaxes(0, 1)
