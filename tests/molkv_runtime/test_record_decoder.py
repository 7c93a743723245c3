"""Records of every format are decoded to the float32 numbers that they store."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from molkv_bundle import Records, RowDtype, ValueDecoder, record_dtype
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


def test_an_int8_window_takes_the_codes_of_an_int8_store_as_they_are() -> None:
    records = _random_records("molkv", "int8", 5)
    decoded = RecordDecoder(CONFIGS["molkv"], "int8", "int8").decode(records)
    layers, found = records["layers"], decoded["layers"]
    assert decoded["embedding"].dtype == found["key"].dtype == np.float32
    assert np.array_equal(decoded["embedding"], records["embedding"].astype(np.float32))
    assert np.array_equal(found["key"], layers["key"].astype(np.float32))
    for name in ("scale", "value"):
        assert found[name].dtype == layers[name].dtype
        assert np.array_equal(found[name], layers[name])


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


@pytest.mark.parametrize("dtype", get_args(RowDtype))
@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_decoded(name: str, dtype: RowDtype) -> None:
    records = _random_records(name, dtype, 5)
    decoder = RecordDecoder(CONFIGS[name], dtype)
    for part in (records[:3], records, records[4:]):
        decoded = decoder.decode(part)
        assert np.array_equal(decoded["embedding"], part["embedding"].astype(np.float32))
        if "layers" not in (records.dtype.names or ()):
            continue
        layers, found = part["layers"], decoded["layers"]
        if "key" in (layers.dtype.names or ()):
            assert np.array_equal(found["key"], layers["key"].astype(np.float32))
        expected = np.empty(found["value"].shape, np.float32)
        scale = layers["scale"] if "scale" in (layers.dtype.names or ()) else None
        ValueDecoder(dtype).decode(layers["value"], scale, expected)
        assert np.array_equal(found["value"], expected)
