"""Golden vectors: what the source model computed in PyTorch for a few texts, so that any device can prove parity.

Their format is in `docs/bundle-format.md`, "Golden vectors". `selftest` runs them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from molkv_bundle.bundle import Bundle
from molkv_bundle.config import WindowDtype
from molkv_bundle.errors import BundleError
from molkv_bundle.manifest import DenseDtype, GraphInfo, KVDtype
from molkv_bundle.row_formats import Floats
from molkv_bundle.safetensors_file import TensorFile

GOLDEN = "golden.safetensors"  # of the cpu profile; others have their name in it
VERSION_KEY, VERSION = "golden_version", "1"  # all metadata there is: with two keys, safetensors writes any order
TOP = 16  # logits that are kept of every position
PROJECTIONS = 8  # numbers that all logits of a position go into
# With float weights nothing but float32 rounding may be left; the kernels of quantized ones round activations to int8,
# each processor's in its own way, and an int8 cache rounds keys and values (docs/parity.md, "The gates").
_MAX_ABS: dict[DenseDtype, float] = {"float32": 1e-4, "float16": 1e-4, "int8": 1.0, "int4": 1.0, "qdq-int8": 1.0}
# A float16 cache goes with a graph that computes in float16.
_MAX_ABS_OF_CACHE: dict[KVDtype, float] = {"float32": 0.0, "float16": 0.05, "int8": 2.0}
# An int8 window rounds probabilities, too; the golden logits do so as well, but a number between two codes may become
# the other one.
_MAX_ABS_OF_WINDOW: dict[WindowDtype, float] = {"float32": 0.0, "int8": 0.2}

_FIELDS = {"input_ids": "I32", "top_ids": "I32", "top_logits": "F32", "projection": "F32", "greedy_ids": "I32"}
_DTYPES = {"I32": "<i4", "F32": "<f4"}


def max_abs(graph: GraphInfo) -> float:
    """Return how far a graph's logits and projections may be from the golden ones."""
    found = _MAX_ABS[graph.dense_dtype], _MAX_ABS_OF_CACHE[graph.kv_dtype], _MAX_ABS_OF_WINDOW[graph.window_dtype]
    return max(found)


class GoldenText(NamedTuple):
    """A text, and what the source model makes of it with its weights and records rounded as the bundle stores them."""

    input_ids: npt.NDArray[np.int32]  # [T]
    top_ids: npt.NDArray[np.int32]  # [T, K]: the likeliest tokens to follow each position, likeliest first
    top_logits: Floats  # [T, K]
    projection: Floats  # [T, P], see `Projection`
    greedy_ids: npt.NDArray[np.int32]  # [G]: how the text goes on; 0 or more tokens


class Projection:
    """Sums of all logits of a position with pseudo-random signs: a logit that is wrong by x moves each by x / sqrt(V).

    projection_r = sum_v sign_r(v) logit_v / sqrt(vocab_size). sign_r(v) is -1 where bit r of hash(v + 1) is set, else
    1; the hash is the finalizer of MurmurHash3 for 32 bits, so that it takes five lines in any language.
    """

    def __init__(self, vocab_size: int) -> None:
        h = np.arange(1, vocab_size + 1, dtype=np.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)  # modulo 2^32
        bits = (h[:, None] >> np.arange(PROJECTIONS, dtype=np.uint32)) & 1
        self._signs = (1.0 - 2.0 * bits) / vocab_size**0.5  # [vocab_size, P]

    def of(self, logits: Floats) -> Floats:
        """Project logits [n, vocab_size] to float32 [n, P], summed in float64."""
        return np.asarray(logits.astype(np.float64) @ self._signs, np.float32)


def read_golden(bundle: Bundle) -> list[GoldenText]:
    """Read and check the golden vectors of a bundle.

    Raises:
        BundleError: It carries none, or they are damaged, of another version or not about this model.
    """
    path = bundle.file(bundle.graph().golden)
    file = TensorFile(path, BundleError)
    found = file.metadata.get(VERSION_KEY, "none")
    if found != VERSION:
        raise BundleError(
            f"{path}: its {VERSION_KEY} is {found[:20]}, expected {VERSION}; "
            "export the model again or use the molkv version that wrote this bundle"
        )
    count = len([name for name in file.entries if name.endswith(".input_ids")])
    expected = {f"texts.{index}.{field}" for index in range(count) for field in _FIELDS}
    if not count or set(file.entries) != expected:
        wrong = sorted(set(file.entries) ^ expected) or ["texts.0.input_ids"]
        raise BundleError(f"{path}: tensor {wrong[0]!r} is missing, or one too many, for {count} texts")
    return [_read_text(file, f"texts.{index}", bundle) for index in range(count)]


def _read_text(file: TensorFile, prefix: str, bundle: Bundle) -> GoldenText:
    vocab_size, context = bundle.config.vocab_size, bundle.config.max_position_embeddings
    length, new = (math.prod(file.entries[f"{prefix}.{field}"].shape) for field in ("input_ids", "greedy_ids"))
    top = min(TOP, vocab_size)
    shapes = {"input_ids": (length,), "top_ids": (length, top), "top_logits": (length, top)}
    shapes |= {"projection": (length, PROJECTIONS), "greedy_ids": (new,)}
    if not 0 < length <= length + new - bool(new) <= context:
        raise BundleError(f"{file.path}: {prefix} has {length} tokens and {new} more, expected 1 to {context} in all")
    arrays = {field: _array(file, f"{prefix}.{field}", _FIELDS[field], shape) for field, shape in shapes.items()}
    for field, array in arrays.items():
        if field.endswith("ids") and array.size and not 0 <= array.min() <= array.max() < vocab_size:
            raise BundleError(f"{file.path}: {prefix}.{field} holds {array.min()} to {array.max()}, expected token ids")
    return GoldenText(**arrays)


def _array(file: TensorFile, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    entry = file.entries[name]
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise BundleError(
            f"{file.path}: tensor {name!r} is {entry.dtype} {list(entry.shape)}, expected {dtype} {list(shape)}"
        )
    return file.read_rows(name).view(_DTYPES[dtype]).reshape(shape)
