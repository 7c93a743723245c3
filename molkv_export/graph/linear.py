"""Matrix products with a constant weight, one class for each format of the weight.

A weight is stored as [in, out], the order that ONNX's MatMul takes; PyTorch's order is [out, in]. Each class declares
its parameters, computes their contents from a weight (`encode`), and multiplies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx import TensorProto
from onnx_ir import Value
from onnxruntime.quantization.quant_utils import quantize_nparray
from onnxscript import OpBuilder, nn

from molkv_bundle import DenseDtype, Floats, KVDtype, RequestError, WindowDtype
from molkv_export.graph.blocks import encode_blocks
from molkv_export.graph.choices import DEFAULT_BLOCK_SIZE, DEFAULT_LM_HEAD_DTYPE, LmHeadDtype
from molkv_export.graph.constants import FLOAT, UINT8

Parameters = dict[str, npt.NDArray[Any]]

_COLUMNS_AT_A_TIME = 1024  # weights are rounded in pieces, so that the large LM head is never in RAM twice
_TINY = float(np.finfo(np.float32).tiny)
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: activations are rounded to int8, block by block


class Linear(nn.Module):
    """A product x @ weight in float32, without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.shape = in_features, out_features
        self.weight = nn.Parameter([in_features, out_features])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return op.MatMul(x, self.weight)

    def encode(self, weight: Floats) -> Parameters:
        """Return the contents of this module's parameters, by name, for a weight [in, out]."""
        return {"weight": weight}


class HalfLinear(Linear):
    """A product with a weight stored in float16, which ONNX Runtime converts to float32 when it loads the graph."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter([in_features, out_features], ir.DataType.FLOAT16)

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return op.MatMul(x, op.Cast(self.weight, to=ir.DataType.FLOAT))

    def encode(self, weight: Floats) -> Parameters:
        """Return the weight rounded to float16.

        Raises:
            RequestError: A number is too large for float16.
        """
        largest = float(np.abs(weight).max())
        if largest > float(np.finfo(np.float16).max):
            raise RequestError(
                f"a weight is {largest:.6g}, expected at most 65504 for float16; export with another --dense-dtype"
            )
        return {"weight": weight.astype(np.float16)}


class HalfComputeLinear(HalfLinear):
    """A product with a float16 weight in a graph that computes in float16."""

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return op.MatMul(x, self.weight)


def int8_product(
    op: OpBuilder, x: Value, codes: Value, scale: Value, *, is_negative: bool = True, may_be_empty: bool = False
) -> Value:
    """Multiply x with int8 codes. Each row of x is first rounded; the step is 1/127 of the row's largest magnitude.

    Args:
        op: The builder of the graph.
        x: float32 [..., rows, in].
        codes: int8 [..., in, out].
        scale: Scale of the codes, a float32 scalar, or [out] with one scale for each column.
        is_negative: Whether x can hold numbers below 0.
        may_be_empty: Whether x can have 0 rows.
    """
    largest = op.ReduceMax(op.Abs(x) if is_negative else x, [-1], keepdims=1)
    if may_be_empty:  # ReduceMax of ONNX Runtime before 1.32 then keeps all columns
        largest = op.Slice(largest, [0], [1], [-1])
    largest = op.Max(largest, FLOAT(op, _TINY))  # a row of zeros stays zero
    unit = FLOAT(op, 1 / 127)
    # The codes of x must be unsigned, since the kernel takes no signed codes.
    middle = UINT8(op, 128 if is_negative else 0)
    rounded = op.QuantizeLinear(op.Div(x, largest), unit, middle)
    product = op.MatMulIntegerToFloat(rounded, codes, unit, scale, middle, _domain="com.microsoft", _version=1)
    return op.Mul(product, largest)


class RowwiseInt8Linear(Linear):
    """A product in int8: each column of the weight has a scale, and each position of the activations has a scale.

    Its kernel is ONNX Runtime's fastest for many positions. `DynamicQuantizeMatMul` has the same kernel, but only one
    scale for all activations of a call. Then the result for a position would depend on the call's other positions.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter([in_features, out_features], ir.DataType.INT8)
        self.weight_scale = nn.Parameter([out_features])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return int8_product(op, x, self.weight, self.weight_scale)

    def encode(self, weight: Floats) -> Parameters:
        """Return codes from -127 to 127, and scales."""
        codes, scales = np.empty(weight.shape, np.int8), np.empty(weight.shape[1], np.float32)
        for start in range(0, weight.shape[1], _COLUMNS_AT_A_TIME):
            columns = slice(start, start + _COLUMNS_AT_A_TIME)
            scales[columns] = np.maximum(np.abs(weight[:, columns]).max(axis=0) / 127, _TINY)
            codes[:, columns] = quantize_nparray(TensorProto.INT8, weight[:, columns], scales[columns], 0)
        return {"weight": codes, "weight_scale": scales}


class RowwiseInt8Head(RowwiseInt8Linear):
    """An LM head in int8. A call that wants no logits gives it no rows."""

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return int8_product(op, x, self.weight, self.weight_scale, may_be_empty=True)


class BlockwiseLinear(Linear):
    """A product with ONNX Runtime's MatMulNBits: weights have 4 or 8 bits, and each block of a column has a scale.

    The kernel rounds activations to int8; each block of a position has a scale.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, block_size: int) -> None:
        super().__init__(in_features, out_features)
        self.bits, self.block_size = bits, block_size
        blocks = -(-in_features // block_size)
        self.weight = nn.Parameter([out_features, blocks, block_size * bits // 8], ir.DataType.UINT8)
        self.weight_scale = nn.Parameter([out_features, blocks])

    def forward(self, op: OpBuilder, x: Value) -> Value:
        """Map x [..., in] to [..., out]."""
        return op.MatMulNBits(
            x,
            self.weight,
            self.weight_scale,
            K=self.shape[0],
            N=self.shape[1],
            bits=self.bits,
            block_size=self.block_size,
            accuracy_level=_INT8_ACTIVATIONS,
            _domain="com.microsoft",
            _version=1,
        )

    def encode(self, weight: Floats) -> Parameters:
        """Return codes and scales; the middle of the range of codes stands for 0."""
        codes, scales = encode_blocks(weight, self.bits, self.block_size, torch.get_num_threads())
        return {"weight": codes, "weight_scale": scales}


class DenseFormat(NamedTuple):
    """The dtypes of a dense graph's large weights, KV cache and expert window; docs/performance.md has the reasons."""

    dtype: DenseDtype = "float32"  # dtype of large weights
    block_size: int = DEFAULT_BLOCK_SIZE  # number of weights that share a scale in int4
    kv_dtype: KVDtype = "float32"
    window_dtype: WindowDtype = "float32"  # dtype of the values in an expert window
    lm_head_dtype: LmHeadDtype = DEFAULT_LM_HEAD_DTYPE  # dtype of the LM head if `dtype` is int4

    def linear(self, in_features: int, out_features: int) -> Linear:
        """Create a product whose weight has this format."""
        match self.dtype:
            case "float32":
                return Linear(in_features, out_features)
            case "float16":
                return HalfLinear(in_features, out_features)
            case "int8":
                return RowwiseInt8Linear(in_features, out_features)
            case "int4":
                return BlockwiseLinear(in_features, out_features, 4, self.block_size)
            case "qdq-int8":
                raise ValueError("qdq-int8 is a format of static graphs")

    def head(self, in_features: int, out_features: int) -> Linear:
        """Create the LM head."""
        if self.dtype == "int8" or (self.dtype == "int4" and self.lm_head_dtype == "int8"):
            return RowwiseInt8Head(in_features, out_features)
        return self.linear(in_features, out_features)


FLOAT32 = DenseFormat()
