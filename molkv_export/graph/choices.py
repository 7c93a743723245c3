"""Choices and defaults for graphs. The command line's help shows them, so this module must not import PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

from molkv_bundle import DenseDtype

# Dtypes of large weights, by profile.
DTYPES: dict[str, tuple[DenseDtype, ...]] = {
    "cpu": ("float32", "float16", "int8", "int4"),
    "coreml": ("float32", "float16"),
    "nnapi": ("float32", "qdq-int8"),
}

# The oldest ONNX Runtime with which the graphs are tested, by profile (`make test-lowest`, `make test-openvino`).
MIN_ONNXRUNTIME = {"cpu": "1.25.1", "coreml": "1.24.1", "nnapi": "1.24.1"}
# The oldest ONNX Runtime whose GroupQueryAttention computes with an int8 KV cache on the CPU: 1.26.0 fails in the first
# call, and 1.27.0 computes wrong logits in batches of sequences with different lengths.
MIN_ONNXRUNTIME_OF_INT8_KV = "1.28.0"

# Allowed numbers of weights that share a scale in int4.
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 128

# Dtypes of the LM head of an int4 graph.
LmHeadDtype = Literal["int8", "int4"]
LM_HEAD_DTYPES: tuple[LmHeadDtype, ...] = get_args(LmHeadDtype)
DEFAULT_LM_HEAD_DTYPE: LmHeadDtype = "int8"

# Defaults of static graphs. Every step computes attention over the whole context, so a context that is longer than
# needed makes every step slower.
CHUNK_LENGTHS = (1, 32)
CONTEXT_LENGTH = 1024
