"""Each static module agrees with its formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import GraphBuilder, OpBuilder

from molkv_export.graph.build import IR_VERSION, OPSET
from molkv_export.graph.constants import FLOAT, HALF, Constants
from molkv_export.graph.static.layers import (
    HalfRMSNorm,
    QdqLinear,
    Rotary,
    StaticRMSNorm,
    gelu_by_exp,
)
from molkv_export.modeling.layers import rotate
from molkv_runtime import session_options

Array = npt.NDArray[Any]


def _run(
    build: Callable[..., ir.Value], constant: Constants, inputs: dict[str, Array], weights: dict[str, Array]
) -> Array:
    """Run the nodes that `build(op, *values)` makes.

    Float16 nodes run in onnx.reference, because ONNX Runtime's CPU provider computes in float32 between two nodes.
    """
    graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET}, name="module")
    builder = GraphBuilder(graph)
    values = [builder.input(name, constant.dtype, array.shape) for name, array in inputs.items()]
    out = build(builder.op, *values)
    out.dtype = constant.dtype
    builder.add_output(out, "y")
    for name, value in graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(weights[name], name=name)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    if constant == HALF:
        found: Array = ReferenceEvaluator(model).run(None, inputs)[0]
        return found
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options()).run(None, inputs)[0]


def _norm(x: Array, weight: Array, eps: float) -> Array:
    x = x.astype(np.float64)
    normed: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return normed


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_a_norm_is_exact_for_numbers_of_any_size(size: float) -> None:
    random = np.random.default_rng(0)
    x = (size * random.standard_normal((5, 48))).astype(np.float32)
    weight = random.uniform(0.5, 1.5, 48).astype(np.float32)
    norm = StaticRMSNorm(48, 1e-6, FLOAT)
    found = _run(lambda op, x: norm(op, x)[0], FLOAT, {"x": x}, {"weight": weight})
    np.testing.assert_allclose(found, _norm(x, weight, 1e-6), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("size", [0.02, 1.0, 300.0, 2e4])
def test_a_norm_in_float16_works_although_squares_overflow(size: float) -> None:
    random = np.random.default_rng(0)
    x = np.clip(size * random.standard_normal((5, 48)), -6e4, 6e4).astype(np.float16)
    x[2] = 0  # a row of zeros stays zero, even if eps rounds to 0 in float16
    weight = random.uniform(0.5, 1.5, 48).astype(np.float16)
    found = _run(lambda op, x: HalfRMSNorm(48, 1e-8, HALF)(op, x)[0], HALF, {"x": x}, {"weight": weight})
    np.testing.assert_allclose(found, _norm(x, weight, 1e-8), rtol=5e-3, atol=1e-3)
    with np.errstate(over="ignore"):
        plain = _run(lambda op, x: StaticRMSNorm(48, 1e-6, HALF)(op, x)[0], HALF, {"x": x}, {"weight": weight})
    survives = np.isfinite(plain).all() and np.abs(plain - found).max() < 0.1
    assert survives == (size <= 1.0)  # the reason for the other norm


def test_gelu_without_erf_is_exact_to_float32() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0, 1e-30, -1e-30, 100, -100]]).astype(np.float32)[None]
    found = _run(lambda op, x: gelu_by_exp(op, x, FLOAT), FLOAT, {"x": x}, {})
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(found - exact).max() < 1e-6
    assert np.abs(found - exact).max() > 0  # it is an approximation


def test_cos_and_sin_of_the_host_rotate_like_the_model() -> None:
    random = np.random.default_rng(0)
    x, positions = random.standard_normal((7, 3, 16)).astype(np.float32), np.arange(5, 12)
    angles = positions[:, None] * 500.0 ** (-np.arange(8) / 8)
    cos, sin = (np.concatenate([part, part], axis=-1)[:, None] for part in (np.cos(angles), np.sin(angles)))
    sin[..., :8] *= -1

    def build(op: OpBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        return Rotary(cos, sin)(op, x, 16, last=2)

    inputs = {"x": x, "cos": cos.astype(np.float32), "sin": sin.astype(np.float32)}
    exact = rotate(torch.from_numpy(x), torch.from_numpy(positions)[:, None], 500.0)
    np.testing.assert_allclose(_run(build, FLOAT, inputs, {}), exact, atol=2e-6)


def test_a_qdq_product_equals_the_product_of_its_codes() -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((6, 32)).astype(np.float32), random.standard_normal((32, 20)).astype(np.float32)
    linear = QdqLinear(32, 20)
    scales = {"input_scale": np.float32(0.03), "output_scale": np.float32(0.2)}
    zeros = {"input_zero_point": np.uint8(120), "output_zero_point": np.uint8(130)}
    stored = {name: np.asarray(array) for name, array in {**linear.encode(weight), **scales, **zeros}.items()}
    found = _run(linear, FLOAT, {"x": x}, stored)

    def rounded(x: Array, scale: float, zero: int) -> Array:
        codes: Array = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
        return codes * scale

    scale = np.abs(weight).max() / 127
    product = rounded(x, 0.03, 120) @ (np.rint(weight / scale) * scale)
    exact = rounded(product, 0.2, 130)
    assert np.abs(found - exact).max() < 0.2 + 1e-4  # a number in the middle between two codes may become either
    assert np.mean(np.abs(found - exact) < 1e-4) > 0.95
