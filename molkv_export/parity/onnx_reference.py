"""Run the dense graph in ONNX's reference evaluator, with numpy versions of the operators that ONNX does not define.

The evaluator is an independent check: if it agrees with PyTorch, and ONNX Runtime does not, ONNX Runtime is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from molkv_bundle import Arrays, BundleError, one_line

Array = npt.NDArray[Any]

_CONTRIB = "com.microsoft"


def _refuse(attributes: dict[str, Any]) -> None:
    """Raise an error for non-zero attributes that are not implemented here, since results would be wrong."""
    meant = {name: value for name, value in attributes.items() if value}
    if meant:
        raise BundleError(f"the dense graph sets the attributes {meant}, which onnx-reference does not implement")


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    mean = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    normed: Array = (x / np.sqrt(mean + epsilon) * weight).astype(x.dtype)
    return normed


def _rotate(x: Array, positions: Array, cos: Array, sin: Array) -> Array:
    """Rotate x [B, H, T, size] by positions [B, T]."""
    c, s = cos[positions][:, None], sin[positions][:, None]  # [B, 1, T, size / 2]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


class SimplifiedLayerNormalization(OpRun):
    """RMSNorm. ONNX Runtime registers this operator in the default domain."""

    def _run(self, x: Array, weight: Array, epsilon: float, axis: int, stash_type: int) -> tuple[Array]:  # noqa: ARG002
        return (_rms_norm(x, weight, epsilon),)


class SkipSimplifiedLayerNormalization(OpRun):
    """RMSNorm of a sum. The second and third outputs are empty, because only training uses them."""

    op_domain = _CONTRIB

    def _run(self, x: Array, skip: Array, weight: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
        total, unused = x + skip, np.zeros(0, np.float32)
        return _rms_norm(total, weight, epsilon), unused, unused, total


class RotaryEmbedding(OpRun):
    """Rotation of x [B, T, num_heads * size]."""

    op_domain = _CONTRIB

    def _run(self, x: Array, positions: Array, cos: Array, sin: Array, num_heads: int, **others: Any) -> tuple[Array]:
        _refuse(others)
        heads = x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)
        return (_rotate(heads, positions, cos, sin).swapaxes(1, 2).reshape(x.shape),)


def _cached(numbers: Array, scale: Array | None) -> Array:
    """Quantize keys or values [Hkv, T, size] to the dtype of the cache."""
    if scale is None:
        return numbers
    codes: Array = np.clip(np.rint(numbers / scale[0]), -128, 127).astype(np.int8)
    return codes


def _read(cache: Array, scale: Array | None) -> Array:
    return cache if scale is None else cache * scale[0]


_CACHES = (("NONE", "NONE", 8), ("PER_CHANNEL", "PER_CHANNEL", 8))


class GroupQueryAttention(OpRun):
    """Causal attention over a KV cache. Query, key and value are one input. The output cache includes new tokens."""

    op_domain = _CONTRIB

    def _run(
        self,
        packed: Array,  # [B, T, (H + 2 * Hkv) * size]
        key: None,  # noqa: ARG002  (packed)
        value: None,  # noqa: ARG002
        past_key: Array,  # [B, Hkv, max_length, size]
        past_value: Array,
        seqlens_k: Array,  # [B]: tokens after this step, minus 1
        total_sequence_length: Array,  # noqa: ARG002  (only needed to allocate growing caches)
        cos: Array,
        sin: Array,
        position_ids: None = None,  # noqa: ARG002
        attention_bias: None = None,  # noqa: ARG002
        head_sink: None = None,  # noqa: ARG002
        k_scale: Array | None = None,  # [1, Hkv, 1, size]: scale of an int8 cache
        v_scale: Array | None = None,
        *,
        num_heads: int,
        kv_num_heads: int,
        do_rotary: int = 0,
        scale: float = 0.0,  # 0: 1 / sqrt(size)
        local_window_size: int = -1,  # -1: all
        k_quant_type: str = "NONE",
        v_quant_type: str = "NONE",
        kv_cache_bit_width: int = 8,
        **others: Any,
    ) -> tuple[Array, Array, Array]:
        _refuse(others)
        if (k_quant_type, v_quant_type, kv_cache_bit_width) not in _CACHES:
            _refuse({"k_quant_type": k_quant_type, "v_quant_type": v_quant_type, "bit_width": kv_cache_bit_width})
        batch, length, _ = packed.shape
        heads = packed.reshape(batch, length, num_heads + 2 * kv_num_heads, -1).swapaxes(1, 2)
        query, key_new, value_new = np.split(heads, [num_heads, num_heads + kv_num_heads], axis=1)
        positions = seqlens_k[:, None] + 1 - length + np.arange(length)  # [B, T]
        if do_rotary:
            query, key_new = _rotate(query, positions, cos, sin), _rotate(key_new, positions, cos, sin)
        present_key, present_value = past_key.copy(), past_value.copy()
        out = np.empty_like(query)
        for b, end in enumerate((seqlens_k + 1).tolist()):
            present_key[b, :, end - length : end] = _cached(key_new[b], k_scale)
            present_value[b, :, end - length : end] = _cached(value_new[b], v_scale)
            group = num_heads // kv_num_heads
            keys = _read(present_key[b, :, :end], k_scale).repeat(group, axis=0)  # [H, end, size]
            values = _read(present_value[b, :, :end], v_scale).repeat(group, axis=0)
            scores = query[b] @ keys.swapaxes(1, 2) * np.float32(scale or query.shape[-1] ** -0.5)
            distance = positions[b][:, None] - np.arange(end)
            reach = end if local_window_size < 0 else local_window_size
            scores = np.where((distance >= 0) & (distance < reach), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b] = weights / weights.sum(axis=-1, keepdims=True) @ values
        return out.swapaxes(1, 2).reshape(batch, length, -1), present_key, present_value


class MatMulIntegerToFloat(OpRun):
    """Product of int8 codes, with one scale for A and one scale for each column of B. B has no zero point."""

    op_domain = _CONTRIB

    def _run(self, a: Array, b: Array, a_scale: Array, b_scale: Array, a_zero: Array) -> tuple[Array]:
        product = (a.astype(np.int32) - a_zero).astype(np.float64) @ b.astype(np.float64)  # exact
        return ((product * (a_scale * b_scale)).astype(np.float32),)


class MatMulNBits(OpRun):
    """Product with a weight quantized in blocks to 4 or 8 bits, with int8 activations. The middle code means zero."""

    op_domain = _CONTRIB

    def _run(
        self,
        x: Array,
        codes: Array,  # [N, blocks, bytes of a block]
        scale: Array,  # [N, blocks]
        K: int,  # noqa: N803
        N: int,  # noqa: N803
        bits: int,
        block_size: int,
        accuracy_level: int,
        **others: Any,
    ) -> tuple[Array]:
        _refuse(others)
        if accuracy_level != 4:
            _refuse({"accuracy_level": accuracy_level})
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, -1, block_size)
        weight = (codes.astype(np.float32) - 2 ** (bits - 1)) * scale.reshape(N, -1, 1)
        count, places = -(-K // block_size), x.shape[:-1]
        blocks = np.pad(x, [*[(0, 0)] * len(places), (0, -K % block_size)]).reshape(*places, count, block_size)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
        rounded = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)) * step
        return (rounded.reshape(*places, count * block_size) @ weight.reshape(N, -1).T,)


_OPERATORS: list[type[OpRun]] = [
    SimplifiedLayerNormalization,
    SkipSimplifiedLayerNormalization,
    RotaryEmbedding,
    GroupQueryAttention,
    MatMulIntegerToFloat,
    MatMulNBits,
]


class ReferenceGraph:
    """The graphs of a profile in ONNX's evaluator. This class implements `molkv_runtime.Graph`.

    Graphs of a static profile hold only operators that ONNX defines, so they use none of the operators above.
    """

    def __init__(self, models: dict[int, onnx.ModelProto], folder: Path) -> None:
        """Load graphs.

        Args:
            models: The graphs, by the number of positions of a call (0: any number).
            folder: The folder with the files of the graphs' weights.
        """
        self._evaluators = {}
        for length, model in models.items():
            onnx.load_external_data_for_model(model, str(folder))
            try:
                self._evaluators[length] = ReferenceEvaluator(model, new_ops=_OPERATORS if length == 0 else None)
            except Exception as error:
                raise BundleError(f"{folder}: onnx.reference cannot load the graph: {one_line(error)}") from error

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> ReferenceCall:
        """Bind buffers to all inputs and outputs."""
        return ReferenceCall(self._evaluators[length], inputs, outputs)


class ReferenceCall:
    """A call with buffers for all inputs and outputs."""

    def __init__(self, evaluator: ReferenceEvaluator, inputs: Arrays, outputs: Arrays) -> None:
        self._evaluator, self._inputs, self._outputs = evaluator, inputs, outputs

    def run(self) -> None:
        """Compute the outputs from the inputs."""
        try:
            found = self._evaluator.run(list(self._outputs), self._inputs)
        except Exception as error:  # the evaluator raises many types of exceptions
            raise BundleError(f"the dense graph failed in onnx.reference: {one_line(error)}") from error
        for (name, array), value in zip(self._outputs.items(), found, strict=True):
            if value.shape != array.shape:
                raise BundleError(f"output {name} of the dense graph has shape {value.shape}, expected {array.shape}")
            array[...] = value
