"""Every rule of the lint can fail, and its message names the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from molkv_export.lint import Compiler, lint
from tests.molkv_export.lint.graphs import absent, axes, broken, clean, small_model, zeros

UNARY = "(float[2, 3] x) => (float[2, 3] y)"


@pytest.mark.parametrize(("compiler", "operator"), [("coreml", "Neg"), ("nnapi", "Erf")])
def test_an_operator_that_is_not_in_the_table(compiler: Compiler, operator: str) -> None:
    result = broken(
        compiler, UNARY + f"{{ y = {operator}(x) }}", f"the operator is {operator}, expected one of .*_ops.md"
    )
    assert result.operators == {operator: 1}
    assert result.findings[0].operator == operator
    assert result.findings[0].node == "y"  # the node has no name, so its output names it


def test_an_operator_that_coreml_gets_wrong() -> None:
    broken("coreml", UNARY + "{ y = Reciprocal(x) }", r"CoreML computes 1 / \(x \+ 0.0001\), expected Div")


def test_an_operator_of_another_domain() -> None:
    text = UNARY + "{ y = com.microsoft.QuickGelu(x) }"
    broken("coreml", text, "domain com.microsoft, expected the default domain")


def test_a_subgraph() -> None:
    branch = "{} () => (float[1] {}) {{ {} = Constant<value_floats = [1.0]>() }}"
    then, other = branch.format("g", "a", "a"), branch.format("h", "b", "b")
    text = f"(bool[1] x) => (float[1] y) {{ y = If(x)<then_branch = {then}, else_branch = {other}> }}"
    broken("coreml", text, "it has a subgraph, expected none", "input x is bool")


def test_a_function() -> None:
    model = small_model(UNARY + "{ y = Sqrt(x) }")
    model.functions.append(
        onnx.parser.parse_function('<opset_import: ["": 22], domain: "mine"> twice (x) => (y) { y = Add(x, x) }')
    )
    (finding,) = lint(model, "coreml").findings
    assert (finding.node, finding.operator) == ("twice", "function")
    assert finding.reason == "the model defines a function, expected none"


def test_shapes_that_contradict_each_other() -> None:
    result = lint(small_model("(float[2, 3] x, float[2, 4] z) => (float[2, 3] y) { y = Add(x, z) }"), "coreml")
    assert [finding.operator for finding in result.findings] == ["graph"]
    assert "invalid in ONNX" in result.findings[0].reason


@pytest.mark.parametrize("compiler", ["coreml", "nnapi"])
def test_a_shape_that_is_not_fixed(compiler: Compiler) -> None:
    broken(
        compiler, "(float[n, 3] x) => (float[n, 3] y) { y = Sqrt(x) }", r"put [xy] has the shape \[.*\], expected a f"
    )


@pytest.mark.parametrize("compiler", ["coreml", "nnapi"])
def test_a_dimension_of_0(compiler: Compiler) -> None:
    broken(
        compiler,
        "(float[0, 3] x) => (float[0, 3] y) { y = Sqrt(x) }",
        r"put [xy] has the shape \[0, 3\], expected no dimension of 0",
    )


@pytest.mark.parametrize(("compiler", "most", "shape"), [("coreml", 5, "1, 1, 1, 1, 1"), ("nnapi", 4, "1, 1, 1, 1")])
def test_too_many_dimensions(compiler: Compiler, most: int, shape: str) -> None:
    text = "(float[{0}] x) => (float[{0}] y) {{ y = Transpose(x) }}"
    clean(compiler, text.format(shape))
    broken(compiler, text.format(shape + ", 1"), f"has {most + 1} dimensions, expected at most {most}")


def test_an_input_of_integers() -> None:
    text = "(int64[2, 3] x) => (int64[2, 3] y) { y = Add(x, x) }"
    result = broken("coreml", text, "put [xy] is int64, expected float32 or float16")
    assert [finding.operator for finding in result.findings] == ["input", "output", "Add", "Add", "Add"]


def test_float16_is_for_coreml_only() -> None:
    text = "(float16[2, 3] x) => (float16[2, 3] y) { y = Sqrt(x) }"
    clean("coreml", text)
    broken("nnapi", text, "put [xy] is float16, expected float32")


def test_an_integer_constant_that_is_not_a_parameter() -> None:
    text = UNARY + "{ a = Cast<to = 1>(k)  y = Add(x, a) }"
    broken("nnapi", text, "input k is int32, expected float32", k=np.zeros((2, 3), np.int32))


PARAMETERS = [
    ("(float[2, 3] x, int64[2] p) => (float[3, 2] y) { y = Reshape(x, p) }", "shape"),
    ("(float[4] x, int64[1] p) => (float[2] y) { y = Slice(x, p, two) }", "starts"),
    ("(float[4] x, int64[1] p) => (float[2] y) { y = Slice(x, zero, p) }", "ends"),
    ("(float[4] x, int64[1] p) => (float[2] y) { y = Slice(x, zero, two, p) }", "axes"),
    ("(float[4] x, int64[1] p) => (float[2] y) { y = Slice(x, zero, two, zero, p) }", "steps"),
    ("(float[4] x, int64[2] p) => (float[2] y, float[2] z) { y, z = Split(x, p) }", "split"),
    ("(float[1, 3] x, int64[1] p) => (float[3] y) { y = Squeeze(x, p) }", "axes"),
    ("(float[3] x, int64[1] p) => (float[1, 3] y) { y = Unsqueeze(x, p) }", "axes"),
    ("(float[2, 3] x, int64[1] p) => (float[2, 1] y) { y = ReduceMean(x, p) }", "axes"),
    ("(float[2, 3] x, int64[1] p) => (float[2, 1] y) { y = ReduceMax(x, p) }", "axes"),
    ("(float[2, 3] x, int64[1] p) => (float[2, 1] y) { y = ReduceSum(x, p) }", "axes"),
]


@pytest.mark.parametrize(("text", "what"), PARAMETERS)
def test_a_parameter_that_is_computed(text: str, what: str) -> None:
    constants = {"zero": axes(0), "two": axes(2)}
    broken("coreml", text, rf"^{what} is computed \(p\), expected a constant", "input p is int64", **constants)


def test_a_constant_node_is_accepted_and_not_counted() -> None:
    model = small_model("(float[6] x) => (float[2, 3] y) { p = Constant<value_ints = [2, 3]>()  y = Reshape(x, p) }")
    result = lint(model, "coreml")
    assert (result.findings, result.nodes, result.operators) == ([], 1, {"Reshape": 1})


def test_a_constant_beyond_2_gib() -> None:
    text = "(float[1, 65536] x) => (float[1, {0}] y) {{ y = MatMul(x, w) }}"
    clean("nnapi", text.format(8192), w=absent(65536, 8192))
    reason = "constant w has 2147745792 bytes, expected at most 2147483648"
    broken("nnapi", text.format(8193), reason, w=absent(65536, 8193))


@pytest.mark.parametrize("compiler", ["coreml", "nnapi"])
@pytest.mark.parametrize(("start", "end", "step"), [(0, 4, 2), (3, 1, -1)])
def test_slices_with_gaps_or_backwards(compiler: Compiler, start: int, end: int, step: int) -> None:
    text = "(float[4] x) => (float[2] y) { y = Slice(x, start, end, axis, step) }"
    clean(compiler, text, start=axes(0), end=axes(2), axis=axes(0), step=axes(1))
    constants = {"start": axes(start), "end": axes(end), "axis": axes(0), "step": axes(step)}
    broken(compiler, text, rf"steps are \[{step}\], expected 1", **constants)


def test_coreml_products() -> None:
    clean("coreml", "(float[2, 3, 4] x, float[2, 4, 5] b) => (float[2, 3, 5] y) { y = MatMul(x, b) }")
    clean("coreml", "(float[2, 3, 4] x) => (float[2, 3, 5] y) { y = MatMul(x, b) }", b=zeros(4, 5))
    computed = "(float[2, 3, 4] x, float[4, 5] b) => (float[2, 3, 5] y) { y = MatMul(x, b) }"
    broken("coreml", computed, r"A \[2, 3, 4\] and B \[4, 5\] differ in batch dimensions, expected equal ones")
    broken("coreml", "(float[4] x) => (float[5] y) { y = MatMul(x, b) }", "have 1 and 2 dimensions", b=zeros(4, 5))


def test_coreml_casts_only_computed_values() -> None:
    clean("coreml", "(float[2] x) => (float16[2] y) { a = Sqrt(x)  y = Cast<to = 10>(a) }")
    broken("coreml", "(float[2] x) => (float16[2] y) { y = Cast<to = 10>(x) }", "input x is an input of the graph")


def test_nnapi_products() -> None:
    clean("nnapi", "(float[3, 4] x) => (float[3, 5] y) { y = MatMul(x, b) }", b=zeros(4, 5))
    clean("nnapi", "(float[2, 3, 4] x, float[2, 4, 5] b) => (float[2, 3, 5] y) { y = MatMul(x, b) }")
    two = "(float[3, 4] x, float[4, 5] b) => (float[3, 5] y) { y = MatMul(x, b) }"
    broken("nnapi", two, r"B is computed \(b\), expected a constant")
    ranks = "(float[2, 3, 4] x) => (float[2, 3, 5] y) { y = MatMul(x, b) }"
    broken("nnapi", ranks, r"A is \[2, 3, 4\] and B \[4, 5\], expected 2 dimensions each", b=zeros(4, 5))
    heads = "(float[2, 3, 4] x, float[1, 4, 5] b) => (float[2, 3, 5] y) { y = MatMul(x, b) }"
    broken("nnapi", heads, r"A \[2, 3, 4\] and B \[1, 4, 5\] differ in batch dimensions")


@pytest.mark.parametrize("compiler", ["coreml", "nnapi"])
def test_fully_connected_layers(compiler: Compiler) -> None:
    b = zeros(4, 4)
    text = "(float[4, 4] x, float[4, 4] z, float[4] v) => (float[4, 4] y) {{ y = Gemm{}(x, {}) }}"
    clean(compiler, text.format("<transB = 1>", "b, c"), b=b, c=zeros(4))
    clean(compiler, text.format("", "b, c"), b=b, c=zeros(1, 4))
    clean(compiler, text.format("", "b"), b=b)
    broken(compiler, text.format("<alpha = 2.0>", "b"), "alpha is 2.0, expected 1.0", b=b)
    broken(compiler, text.format("<beta = 0.5>", "b"), "beta is 0.5, expected 1.0", b=b)
    broken(compiler, text.format("<transA = 1>", "b"), "transA is 1, expected 0", b=b)
    broken(compiler, text.format("", "z"), r"B is computed \(z\), expected a constant")
    broken(compiler, text.format("", "b, v"), r"C is computed \(v\), expected a constant", b=b)
    broken(compiler, text.format("", "b, c"), r"C has the shape \[4, 4\], expected \[4\] or \[1, 4\]", b=b, c=b)
    broken(compiler, text.format("", "b, c"), r"C has the shape \[\], expected \[4\] or \[1, 4\]", b=b, c=zeros())
