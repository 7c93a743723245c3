"""What can be chosen of a graph, and the defaults: constants only, for the command line shows them without PyTorch."""

from __future__ import annotations

from molkv_bundle import DenseDtype

DTYPES: dict[str, tuple[DenseDtype, ...]] = {  # of large weights, by profile
    "cpu": ("float32", "float16", "int8", "int4"),
    "coreml": ("float32", "float16"),
    "nnapi": ("float32", "qdq-int8"),
}

# The oldest ONNX Runtime that ran the graphs, by profile (`make test-lowest`, `make test-openvino`).
MIN_ONNXRUNTIME = {"cpu": "1.25.1", "coreml": "1.24.1", "nnapi": "1.24.1"}

# Weights that share a scale in int4.
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 128

# Of static graphs. They attend to their whole context in every step, so it should not be longer than it is used.
CHUNK_LENGTHS = (1, 32)
CONTEXT_LENGTH = 1024
