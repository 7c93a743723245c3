"""Every storage format of weights multiplies as defined, up to float32 rounding."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import GraphBuilder

from molkv_bundle import Floats, GraphInfo, RequestError
from molkv_export.graph.build import IR_VERSION, OPSET
from molkv_export.graph.choices import BLOCK_SIZES, DTYPES
from molkv_export.graph.linear import DenseFormat, Linear
from molkv_export.parity.onnx_reference import MatMulIntegerToFloat
from molkv_export.source.blocks import checked_scales
from molkv_export.source.rounding import stored_weight
from molkv_runtime import session_options

FORMATS = [DenseFormat(dtype) for dtype in DTYPES["cpu"]]
FORMATS += [DenseFormat("int4", size) for size in BLOCK_SIZES]
HEADS = [*FORMATS, *(DenseFormat("int4", size, lm_head_dtype="int4") for size in BLOCK_SIZES)]
SIZES = [(96, 40), (256, 64), (32, 3)]


def _random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _model(linear: Linear, weight: Floats) -> bytes:
    """Make a graph of x [n, in] @ weight."""
    graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET, "com.microsoft": 1}, name="product")
    builder = GraphBuilder(graph)
    out = linear(builder.op, builder.input("x", ir.DataType.FLOAT, ["n", linear.shape[0]]))
    out.dtype, out.shape = ir.DataType.FLOAT, ir.Shape(["n", linear.shape[1]])
    builder.add_output(out, "y")
    for name, array in linear.encode(weight).items():
        graph.initializers[name].const_value = ir.tensor(array, name=name)
    return ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()


def _product(linear: Linear, weight: Floats, x: Floats) -> Floats:
    session = onnxruntime.InferenceSession(_model(linear, weight), session_options())
    found: Floats = session.run(None, {"x": x})[0]
    return found


def _stored(weight: Floats, dense: DenseFormat, linear: Linear, name: str = "up_proj.weight") -> Floats:
    """Round a weight as the format says; of what `linear` encodes, only the scales of blocks are used."""
    parts = linear.encode(weight)
    exact, scales = torch.from_numpy(weight.T.copy()), None
    if parts["weight"].dtype == np.uint8:
        scales = checked_scales(exact, dense.block_size, torch.from_numpy(parts["weight_scale"]))
    graph = {
        "dense_dtype": dense.dtype,
        "kv_dtype": "float32",
        "window_dtype": "float32",
        "block_size": dense.block_size,
    }
    info = msgspec.convert(
        {
            "files": (),
            "data": "",
            "golden": "",
            "context_length": 1,
            "expert_window": 0,
            "min_onnxruntime": "1.25.1",
            **graph,
        },
        GraphInfo,
    )
    return stored_weight(name, exact, info, (), scales).numpy().T


def _rounded_activations(x: Floats, dense: DenseFormat) -> npt.NDArray[np.float64]:
    """Round like the kernels: to 127 steps of the largest number of a row (int8) or of a block of a row (int4)."""
    size = {"int8": x.shape[1], "int4": dense.block_size}.get(dense.dtype)
    if size is None:
        return x.astype(np.float64)
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0).round()
    return (codes.astype(np.float64) * step).reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dense", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [1, 7])
def test_a_product_multiplies_rounded_weights_and_activations(
    dense: DenseFormat, size: tuple[int, int], rows: int
) -> None:
    weight, x = _random(*size), _random(rows, size[0], seed=1)
    linear = dense.linear(*size)
    found = _product(linear, weight, x)
    expected = _rounded_activations(x, dense) @ _stored(weight, dense, linear)
    # An activation rounded to another code would give a thousand times this difference.
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dense", HEADS, ids=str)
def test_the_head_of_an_int4_model_has_its_own_dtype(dense: DenseFormat) -> None:
    weight, x = _random(200, 2500), _random(3, 200, seed=1)  # more columns than are rounded in one batch
    head = dense.head(200, 2500)
    found = _product(head, weight, x)
    rounding = DenseFormat("int8") if (dense.dtype, dense.lm_head_dtype) == ("int4", "int8") else dense
    expected_dtype = {"float16": np.float16, "int8": np.int8, "int4": np.uint8}.get(rounding.dtype, np.float32)
    assert head.encode(weight)["weight"].dtype == expected_dtype
    expected = _rounded_activations(x, rounding) @ _stored(weight, dense, head, "lm_head.weight")
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dense", HEADS, ids=str)
def test_a_head_takes_no_rows(dense: DenseFormat) -> None:
    found = _product(dense.head(96, 40), _random(96, 40), np.zeros((0, 96), np.float32))
    assert found.shape == (0, 40)


@pytest.mark.parametrize("dense", FORMATS, ids=str)
def test_rows_do_not_depend_on_each_other(dense: DenseFormat) -> None:
    weight, x = _random(256, 64), _random(5, 256, seed=1) * np.array([[1], [100], [0], [1e-3], [1]], np.float32)
    together, *alone = (_product(dense.linear(256, 64), weight, rows) for rows in (x, *np.split(x, len(x))))
    largest = np.abs(together).max(axis=1, keepdims=True)
    assert (np.abs(together - np.concatenate(alone)) <= 1e-6 * largest).all()
    assert np.array_equal(together[2], np.zeros(64, np.float32))


def test_a_row_of_zeros_is_not_divided_by_zero() -> None:
    # ONNX Runtime would silently convert NaN to a code. Numpy warns about NaN, and warnings are errors in these tests.
    model = onnx.load_from_string(_model(DenseFormat("int8").linear(32, 8), _random(32, 8)))
    evaluator = ReferenceEvaluator(model, new_ops=[MatMulIntegerToFloat])
    assert np.array_equal(evaluator.run(None, {"x": np.zeros((2, 32), np.float32)})[0], np.zeros((2, 8)))


@pytest.mark.parametrize("dense", FORMATS, ids=str)
def test_a_weight_of_zeros_gives_zeros(dense: DenseFormat) -> None:
    weight = _random(256, 64)
    weight[:, 5] = 0
    found = _product(dense.linear(256, 64), weight, _random(2, 256, seed=1))
    assert np.array_equal(found[:, 5], np.zeros(2, np.float32))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dense", FORMATS, ids=str)
def test_stored_codes_and_scales_match_the_definition(dense: DenseFormat) -> None:
    weight = _random(200, 40)  # not a multiple of any block
    linear = dense.linear(200, 40)
    found = _decoded(linear.encode(weight), dense, weight.shape)
    assert np.abs(found - _stored(weight, dense, linear)).max() < 1e-6


def _decoded(parts: dict[str, npt.NDArray[Any]], dense: DenseFormat, shape: tuple[int, ...]) -> Floats:
    codes = parts["weight"]
    if dense.dtype == "int4":
        both = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        return ((both.astype(np.float32) - 8) * parts["weight_scale"][..., None]).reshape(shape[1], -1)[:, : shape[0]].T
    return codes.astype(np.float32) * parts.get("weight_scale", np.float32(1))


def test_a_weight_beyond_float16_is_refused() -> None:
    weight = _random(32, 8)
    weight[3, 4] = -70_000
    with pytest.raises(RequestError, match=r"a weight is 70000, expected at most 65504 for float16; export with an"):
        DenseFormat("float16").linear(32, 8).encode(weight)
