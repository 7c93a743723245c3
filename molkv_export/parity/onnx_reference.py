"""The dense graph computed by ONNX's own reference evaluator, and ONNX Runtime's operators for it, in numpy.

A second opinion: where it agrees with PyTorch and ONNX Runtime does not, the graph is right and the runtime is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from molkv_runtime.dense_graph import Arrays, one_line
from molkv_runtime.errors import BundleError

Array = npt.NDArray[Any]

_CONTRIB = "com.microsoft"


def _refuse(attributes: dict[str, Any]) -> None:
    """Refuse attributes that mean something and are not implemented: a second opinion must not overlook them."""
    meant = {name: value for name, value in attributes.items() if value}
    if meant:
        raise BundleError(f"the dense graph sets {meant}, which onnx-reference does not know")


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
    """RMSNorm; ONNX Runtime registers it in the default domain."""

    def _run(self, x: Array, weight: Array, epsilon: float, axis: int, stash_type: int) -> tuple[Array]:  # noqa: ARG002
        return (_rms_norm(x, weight, epsilon),)


class SkipSimplifiedLayerNormalization(OpRun):
    """RMSNorm of a sum; the second and third output are for training."""

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


class GroupQueryAttention(OpRun):
    """Causal attention with packed query, key and value over a cache, which it gives back with the new tokens in it."""

    op_domain = _CONTRIB

    def _run(
        self,
        packed: Array,  # [B, T, (H + 2 * Hkv) * size]
        key: None,  # noqa: ARG002  (packed)
        value: None,  # noqa: ARG002
        past_key: Array,  # [B, Hkv, max_length, size]
        past_value: Array,
        seqlens_k: Array,  # [B]: tokens after this step, minus 1
        total_sequence_length: Array,  # noqa: ARG002  (for the allocation of caches that grow)
        cos: Array,
        sin: Array,
        num_heads: int,
        kv_num_heads: int,
        do_rotary: int = 0,
        scale: float = 0.0,  # 0: 1 / sqrt(size)
        local_window_size: int = -1,  # -1: all
        **others: Any,
    ) -> tuple[Array, Array, Array]:
        _refuse(others)
        batch, length, _ = packed.shape
        heads = packed.reshape(batch, length, num_heads + 2 * kv_num_heads, -1).swapaxes(1, 2)
        query, key_new, value_new = np.split(heads, [num_heads, num_heads + kv_num_heads], axis=1)
        positions = seqlens_k[:, None] + 1 - length + np.arange(length)  # [B, T]
        if do_rotary:
            query, key_new = _rotate(query, positions, cos, sin), _rotate(key_new, positions, cos, sin)
        present_key, present_value = past_key.copy(), past_value.copy()
        out = np.empty_like(query)
        for b, end in enumerate((seqlens_k + 1).tolist()):
            present_key[b, :, end - length : end] = key_new[b]
            present_value[b, :, end - length : end] = value_new[b]
            group = num_heads // kv_num_heads
            keys = present_key[b, :, :end].repeat(group, axis=0)  # [H, end, size]
            scores = query[b] @ keys.swapaxes(1, 2) * np.float32(scale or query.shape[-1] ** -0.5)
            distance = positions[b][:, None] - np.arange(end)
            reach = end if local_window_size < 0 else local_window_size
            scores = np.where((distance >= 0) & (distance < reach), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b] = weights / weights.sum(axis=-1, keepdims=True) @ present_value[b, :, :end].repeat(group, axis=0)
        return out.swapaxes(1, 2).reshape(batch, length, -1), present_key, present_value


_OPERATORS: list[type[OpRun]] = [
    SimplifiedLayerNormalization,
    SkipSimplifiedLayerNormalization,
    RotaryEmbedding,
    GroupQueryAttention,
]


class ReferenceGraph:
    """A dense graph in ONNX's evaluator; a `molkv_runtime.dense_graph.Graph`."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        """Take a graph, and load its weights from files in a folder."""
        onnx.load_external_data_for_model(model, str(folder))
        try:
            self._evaluator = ReferenceEvaluator(model, new_ops=_OPERATORS)
        except Exception as error:
            raise BundleError(f"{folder}: onnx.reference cannot load its graph: {one_line(error)}") from error

    def bind(self, inputs: Arrays, outputs: Arrays) -> ReferenceCall:
        """Bind buffers to all inputs and outputs."""
        return ReferenceCall(self._evaluator, inputs, outputs)


class ReferenceCall:
    """One call with all its buffers."""

    def __init__(self, evaluator: ReferenceEvaluator, inputs: Arrays, outputs: Arrays) -> None:
        self._evaluator, self._inputs, self._outputs = evaluator, inputs, outputs

    def run(self) -> None:
        """Compute the outputs from the inputs."""
        try:
            found = self._evaluator.run(list(self._outputs), self._inputs)
        except Exception as error:  # the evaluator raises many kinds
            raise BundleError(f"the dense graph fails in onnx.reference: {one_line(error)}") from error
        for (name, array), value in zip(self._outputs.items(), found, strict=True):
            if value.shape != array.shape:
                raise BundleError(f"the dense graph's {name} has shape {value.shape}, expected {array.shape}")
            array[...] = value
