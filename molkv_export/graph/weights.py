"""Filling the dense graph with a checkpoint's weights, by name and lazily."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.native import EMBEDDING, LM_HEAD

_ROWS_AT_A_TIME = 4096


def attach_weights(model: ir.Model, checkpoint: Checkpoint) -> None:
    """Give every initializer without data a lazy tensor that reads it from the checkpoint when the graph is saved."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.shape is not None
            shape = tuple(value.shape.numpy())
            value.const_value = _lazy(_reader(name, shape, checkpoint), shape, name)


def source_names(name: str, tied: bool) -> list[str]:
    """Name the tensors of the checkpoint that make up an initializer, in the order of its columns."""
    if name.endswith("qkv_proj.weight"):
        return [name.replace("qkv_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
    return [EMBEDDING if tied and name == LM_HEAD else name]


def _reader(name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> Callable[[], npt.NDArray[np.float32]]:
    sources = source_names(name, checkpoint.config.tie_word_embeddings)

    def read() -> npt.NDArray[np.float32]:
        if len(shape) == 1:
            return checkpoint.tensor(sources[0]).numpy()
        # Matrices are transposed piece by piece: of the LM head there is never a second copy.
        out, column = np.empty(shape, np.float32), 0
        for source in sources:
            rows = checkpoint.shape(source)[0]
            for start in range(0, rows, _ROWS_AT_A_TIME):
                stop = min(rows, start + _ROWS_AT_A_TIME)
                out[:, column + start : column + stop] = checkpoint.tensor(source, start, stop).numpy().T
            column += rows
        return out

    return read


def _lazy(read: Callable[[], npt.NDArray[np.float32]], shape: tuple[int, ...], name: str) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.Tensor(read(), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name)
