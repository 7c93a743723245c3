"""The closed list of operators that a dense graph may contain. `docs/bundle-format.md` has the same list.

Some kernels of ONNX Runtime do not check their inputs and attributes, and crash on nodes that break the operator's
specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

AttributeType = Literal["float", "int", "string", "tensor", "ints"]
Domain = Literal["", "com.microsoft"]
_MICROSOFT: Domain = "com.microsoft"

OPSETS: Mapping[str, int] = MappingProxyType({"": 22, _MICROSOFT: 1})


class Operator(NamedTuple):
    """The inputs, outputs and attributes that nodes of an operator may have.

    A string describes the inputs or the outputs of a node, with one character for each: `x` for a name, `-` for an
    empty name.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    attributes: Mapping[str, AttributeType]  # all allowed attributes; each may be absent


def _operator(inputs: str, outputs: str = "x", **attributes: AttributeType) -> Operator:
    return Operator(frozenset(inputs.split(" ")), frozenset(outputs.split(" ")), MappingProxyType(attributes))


OPERATORS: Mapping[tuple[str, str], Operator] = MappingProxyType(
    {
        ("", "Abs"): _operator("x"),
        ("", "Add"): _operator("xx"),
        ("", "Cast"): _operator("x", to="int"),
        ("", "CastLike"): _operator("xx"),
        ("", "Concat"): _operator("xx xxx", axis="int"),
        ("", "Constant"): _operator("", value="tensor", value_float="float", value_ints="ints"),
        ("", "DequantizeLinear"): _operator("xxx"),
        ("", "Div"): _operator("xx"),
        ("", "Exp"): _operator("x"),
        ("", "Gelu"): _operator("x", approximate="string"),
        ("", "MatMul"): _operator("xx"),
        ("", "Max"): _operator("xx"),
        ("", "Mul"): _operator("xx"),
        ("", "QuantizeLinear"): _operator("xxx"),
        ("", "ReduceMax"): _operator("xx", keepdims="int"),
        ("", "ReduceMean"): _operator("xx", keepdims="int"),
        ("", "Relu"): _operator("x"),
        ("", "Reshape"): _operator("xx"),
        ("", "Shape"): _operator("x", end="int", start="int"),
        ("", "Sigmoid"): _operator("x"),
        ("", "SimplifiedLayerNormalization"): _operator("xx", axis="int", epsilon="float", stash_type="int"),
        ("", "Slice"): _operator("xxxx xxxxx"),
        ("", "Softmax"): _operator("x", axis="int"),
        ("", "Sqrt"): _operator("x"),
        ("", "Squeeze"): _operator("xx"),
        ("", "Sub"): _operator("xx"),
        ("", "Tanh"): _operator("x"),
        ("", "Transpose"): _operator("x", perm="ints"),
        ("", "Unsqueeze"): _operator("xx"),
        (_MICROSOFT, "GroupQueryAttention"): _operator(
            "x--xxxxxx x--xxxxxx---xx",
            "xxx",
            do_rotary="int",
            k_quant_type="string",
            kv_cache_bit_width="int",
            kv_num_heads="int",
            local_window_size="int",
            num_heads="int",
            scale="float",
            v_quant_type="string",
        ),
        (_MICROSOFT, "MatMulIntegerToFloat"): _operator("xxxxx"),
        (_MICROSOFT, "MatMulNBits"): _operator(
            "xxx", K="int", N="int", accuracy_level="int", bits="int", block_size="int"
        ),
        (_MICROSOFT, "RotaryEmbedding"): _operator("xxxx", num_heads="int"),
        (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _operator("xxx", "xxxx", epsilon="float"),
    }
)
