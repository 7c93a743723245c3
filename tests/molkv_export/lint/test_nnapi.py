"""Rules for NNAPI only, most of them for QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import pytest

from tests.molkv_export.lint.graphs import Constant, absent, axes, broken, clean, zeros

SCALE = np.array(0.5, np.float32)
MIDDLE = np.array(128, np.uint8)
PAIR = "{0}q = QuantizeLinear({0}, s, z)  {0}d = DequantizeLinear({0}q, s, z)  "
WEIGHT = "bd = DequantizeLinear(b, s, bz)  "

UNARY = "(float[2, 3] x) => (float[2, 3] y)"
INPUT = "(float[3, 4] x) => (float[3, 5] y) { "
PRODUCT = INPUT + PAIR.format("x") + WEIGHT + "a = MatMul(xd, bd)  aq = QuantizeLinear(a, s, z) "
END = "y = DequantizeLinear(aq, s, z) }"


def constants(**others: Constant) -> dict[str, Constant]:
    """Return valid parameters of a product, with some changes."""
    b, zero = np.zeros((4, 5), np.int8), np.array(0, np.int8)
    return {"s": SCALE, "z": MIDDLE, "b": b, "bz": zero, **others}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_quantized_product(dtype: type[np.generic]) -> None:
    clean("nnapi", PRODUCT + END, **constants(b=np.zeros((4, 5), dtype), bz=np.zeros((), dtype)))


def test_parameters_without_loaded_data_are_not_checked() -> None:
    clean("nnapi", PRODUCT + END, **constants(s=absent()))


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    broken("nnapi", PRODUCT + END, "scale is .*, expected more than 0", **constants(s=np.array(scale, np.float32)))


def test_a_scale_for_every_column() -> None:
    text = PRODUCT.replace("(b, s, bz)", "(b, bs, bz)") + END
    shapes = {"bs": np.ones(5, np.float32), "bz": np.zeros(5, np.int8)}
    reason = r"(scale|zero point) has the shape \[5\], expected one number"
    broken("nnapi", text, reason, **constants(**shapes))
    clean("nnapi", text, **constants(bs=np.ones(1, np.float32)))


def test_parameters_that_are_computed() -> None:
    scale = PRODUCT.replace("x)", "x, float p)", 1).replace("x, s, z", "x, p, z") + END
    broken("nnapi", scale, r"scale is computed \(p\), expected a constant", **constants())
    middle = PRODUCT.replace("x)", "x, uint8 p)", 1).replace("x, s, z", "x, s, p") + END
    broken("nnapi", middle, r"zero point is computed \(p\), expected a constant", "input p is uint8", **constants())


def test_activations_of_int8() -> None:
    text = "(float[3, 4] x) => (float[3, 4] xd) { " + PAIR.format("x") + "}"
    reason = "(output|activation) xq is int8, expected uint8"
    broken("nnapi", text, reason, s=SCALE, z=np.array(0, np.int8))


def test_quantizing_follows_the_same_rules_alone() -> None:
    text = "(float[5] x) => (int8[5] q) { q = QuantizeLinear(x, s, z) }"
    reasons = "output q is int8, expected (uint8|float32)", r"scale has the shape \[5\], expected one number"
    result = broken("nnapi", text, *reasons, s=np.ones(5, np.float32), z=np.array(0, np.int8))
    assert [finding.operator for finding in result.findings] == ["output", "QuantizeLinear", "QuantizeLinear"]


def test_float16_cannot_be_quantized() -> None:
    text = "(float16[5] x) => (float16[5] y) { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"
    result = broken("nnapi", text, "put [xy] is float16, expected float32", s=np.array(1, np.float16), z=MIDDLE)
    operators = ["input", "output", "QuantizeLinear", "DequantizeLinear"]
    assert [finding.operator for finding in result.findings] == operators


def test_an_int8_constant_that_is_not_a_weight() -> None:
    text = "(float[4, 5] x) => (float[4, 5] y) { " + WEIGHT + "y = Add(x, bd) }"
    broken("nnapi", text, "activation b is int8, expected uint8", **constants())


def test_a_weight_of_int8_with_a_zero_point() -> None:
    reason = "zero point is 3, expected 0 for an int8 weight"
    broken("nnapi", PRODUCT + END, reason, **constants(bz=np.array(3, np.int8)))


def test_a_weight_of_another_type() -> None:
    b, zero = np.zeros((4, 5), np.int16), np.array(0, np.int16)
    broken("nnapi", PRODUCT + END, "weight b is int16, expected uint8 or int8", **constants(b=b, bz=zero))


def test_integers_outside_of_a_quantize_dequantize_pair() -> None:
    reshaped = "q = QuantizeLinear(x, s, z)  r = Transpose(q)  y = DequantizeLinear(r, s, z) }"
    reasons = ("put [qr] is uint8, expected float32", "input r is uint8, expected a constant or the output of")
    broken("nnapi", "(float[3, 4] x) => (float[4, 3] y) { " + reshaped, *reasons, s=SCALE, z=MIDDLE)
    given = "(uint8[3, 4] x) => (float[3, 4] y) { y = DequantizeLinear(x, s, z) }"
    broken("nnapi", given, "input x is uint8, expected", s=SCALE, z=MIDDLE)


def test_a_weight_beside_activations_of_float32() -> None:
    reason = r"A \(x\) is float32, expected the output of DequantizeLinear in"
    broken("nnapi", PRODUCT.replace("MatMul(xd", "MatMul(x") + END, reason, **constants())


def test_a_weight_that_is_computed() -> None:
    text = "(float[3, 4] x, float[4, 5] w) => (float[3, 5] y) { " + PAIR.format("x") + PAIR.format("w")
    text += "a = MatMul(xd, wd)  aq = QuantizeLinear(a, s, z)  "
    broken("nnapi", text + END, r"B is computed \(wd\), expected a constant", **constants())


def test_a_product_that_is_not_quantized_again() -> None:
    text = PRODUCT.replace("aq = QuantizeLinear(a, s, z)", "")
    reason = r"the result is used by {}, expected one QuantizeLinear"
    broken("nnapi", text + "y = Sqrt(a) }", reason.format(r"\['Sqrt'\]"), **constants())
    broken("nnapi", text.replace("a = ", "y = ") + "}", reason.format("an output"), **constants())
    both = PRODUCT + "c = DequantizeLinear(aq, s, z)  y = Add(a, c) }"
    broken("nnapi", both, reason.format(r"\['Add', 'QuantizeLinear'\]"), **constants())


def test_only_float_products_may_have_more_dimensions() -> None:
    text = "(float[2, 3, 4] x, float[2, 4, 5] w) => (float[2, 3, 5] y) { " + PAIR.format("x") + PAIR.format("w")
    reason = r"[AB] has the shape \[2, ., .\], expected 2 dimensions"
    quantized = text + "a = MatMul(xd, wd)  aq = QuantizeLinear(a, s, z)  " + END
    broken("nnapi", quantized, reason, "B is computed", s=SCALE, z=MIDDLE)
    clean("nnapi", text + "y = MatMul(xd, wd) }", s=SCALE, z=MIDDLE)


def test_nnapi_max_has_two_inputs() -> None:
    clean("nnapi", UNARY + "{ y = Max(x, k) }", k=zeros(3))
    broken("nnapi", UNARY + "{ y = Max(x, x, k) }", "it has 3 inputs, expected 2", k=zeros(3))


def test_nnapi_softmax_of_a_vector() -> None:
    clean("nnapi", UNARY + "{ y = Softmax(x) }")
    broken(
        "nnapi", "(float[3] x) => (float[3] y) { y = Softmax(x) }", r"input has the shape \[3\], expected at least 2"
    )


def test_nnapi_concat_outside_of_its_dimensions() -> None:
    text = "(float[2, 3] x) => (float[2, 6] y) {{ y = Concat<axis = {}>(x, x) }}"
    clean("nnapi", text.format(-1))
    broken("nnapi", text.format(2), "axis is 2, expected -2 to 1", "its shapes are invalid in ONNX")


def test_nnapi_splits_into_equal_parts() -> None:
    text = "(float[4] x) => (float[{}] y, float[{}] z) {{ y, z = Split(x, sizes) }}"
    clean("nnapi", text.format(2, 2), sizes=axes(2, 2))
    broken("nnapi", text.format(1, 3), r"\[\(1,\), \(3,\)\], expected equal shapes", sizes=axes(1, 3))
