"""Golden vectors: results of the source model in PyTorch for a few texts. A driver compares its results with them.

`docs/bundle-format.md`, "Golden vectors", describes the format. `molkv_runtime.selftest` runs the comparison.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_bundle.bundle import Bundle
from molkv_bundle.errors import BundleError
from molkv_bundle.row_formats import Floats
from molkv_bundle.safetensors_file import TensorFile

GOLDEN = "golden.safetensors"  # file name for the cpu profile; the names for other profiles also contain the profile
# This is the only metadata key, since safetensors would write several keys in any order.
VERSION_KEY, VERSION = "golden_version", "2"
TOP = 16  # number of logits that the file contains for each position
PROJECTIONS = 8  # number of projections of the logits of a position
LIMITS = "limits"  # name of the tensor F32 [2] with the fields of `GoldenLimits`

_FIELDS = {"input_ids": "I32", "top_ids": "I32", "top_logits": "F32", "projection": "F32", "greedy_ids": "I32"}
_DTYPES = {"I32": "<i4", "F32": "<f4"}


class GoldenLimits(msgspec.Struct, frozen=True):
    """The largest differences from the golden vectors that the rounding of the graph's dtypes can cause."""

    max_abs: float  # for each logit and each projection
    relative_l2: float  # for all projections of all texts together


class GoldenText(NamedTuple):
    """A text and the results of the source model, in float64, with weights and records rounded as in the bundle."""

    input_ids: npt.NDArray[np.int32]  # [T]
    top_ids: npt.NDArray[np.int32]  # [T, K]: the most likely next tokens of each position, most likely first
    top_logits: Floats  # [T, K]
    projection: Floats  # [T, P], see `Projection`
    greedy_ids: npt.NDArray[np.int32]  # [G]: the greedy continuation of the text; may be empty


@lru_cache(maxsize=1)  # the signs take time and memory, and only one vocabulary is in use at a time
def _signs(vocab_size: int) -> npt.NDArray[np.float64]:
    h = np.arange(1, vocab_size + 1, dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)  # modulo 2^32
    bits = (h[:, None] >> np.arange(PROJECTIONS, dtype=np.uint32)) & 1
    signs: npt.NDArray[np.float64] = (1.0 - 2.0 * bits) / vocab_size**0.5
    return signs


class Projection:
    """Projections of logits: sums of all logits of a position with pseudo-random signs.

    projection_r = sum_v sign_r(v) logit_v / sqrt(vocab_size). An error of x in one logit changes every projection by
    x / sqrt(vocab_size). sign_r(v) is -1 if bit r of hash(v + 1) is set, else 1. The hash is the 32-bit finalizer of
    MurmurHash3 (five lines of code in any language).
    """

    def __init__(self, vocab_size: int) -> None:
        self._signs = _signs(vocab_size)  # [vocab_size, P]

    def of(self, logits: Floats) -> Floats:
        """Return the projections [n, P] of logits [n, vocab_size], as float32. The sums are computed in float64."""
        return np.asarray(logits.astype(np.float64) @ self._signs, np.float32)


class Golden(NamedTuple):
    """The content of a file of golden vectors."""

    limits: GoldenLimits
    texts: list[GoldenText]

    def limits_beside(self, max_abs: float) -> GoldenLimits:
        """Return the limits for a provider whose own rounding changes each logit by at most `max_abs`.

        `max_abs` grows by this difference. `relative_l2` grows by this difference divided by the root mean square of
        all projections.
        """
        squares = [np.square(text.projection, dtype=np.float64).mean(axis=-1) for text in self.texts]
        size = float(np.concatenate(squares).mean() ** 0.5)  # the value for the logits is about the same
        relative = max_abs / size if max_abs and size else 0.0
        return GoldenLimits(self.limits.max_abs + max_abs, self.limits.relative_l2 + relative)


class GoldenErrors:
    """The differences between logits and golden vectors, and counts of the most likely tokens.

    The most likely token of a position is certain if the two largest golden logits differ by more than
    2 * `limits.max_abs`: allowed differences cannot make another token more likely.
    """

    def __init__(self, vocab_size: int, limits: GoldenLimits) -> None:
        """Start with no positions."""
        self._projection, self._limits = Projection(vocab_size), limits
        self.positions = self.certain_tokens = self.right_tokens = 0
        self.max_abs_logit = self.max_abs_projection = 0.0
        self._difference = self._size = 0.0

    def add(self, text: GoldenText, start: int, logits: Floats) -> None:
        """Compare the logits [n, vocab_size] of n positions of a text, from position `start` on."""
        rows = slice(start, start + len(logits))
        top, expected = text.top_logits[rows], text.projection[rows].astype(np.float64)
        projected = self._projection.of(logits) - expected
        at_top = np.take_along_axis(logits, text.top_ids[rows].astype(np.intp), axis=-1)
        # np.max keeps a NaN, which max() could drop.
        self.max_abs_logit = float(np.max([self.max_abs_logit, np.abs(at_top - top).max()]))
        self.max_abs_projection = float(np.max([self.max_abs_projection, np.abs(projected).max()]))
        self._difference += float(np.square(projected).sum())
        self._size += float(np.square(expected).sum())
        if top.shape[1] > 1:
            certain = top[:, 0] - top[:, 1] > 2 * self._limits.max_abs
            self.certain_tokens += int(certain.sum())
            self.right_tokens += int((logits.argmax(axis=-1) == text.top_ids[rows, 0])[certain].sum())
        self.positions += len(logits)

    @property
    def relative_l2(self) -> float:
        """||difference|| / ||golden|| over all projections so far."""
        if self._size == 0:
            return 0.0 if self._difference == 0 else math.inf
        return math.sqrt(self._difference / self._size)


def read_golden(bundle: Bundle) -> Golden:
    """Read and check the golden vectors of a bundle.

    Raises:
        BundleError: The file of golden vectors is missing or damaged, or is of another version or of another model.
    """
    path = bundle.file(bundle.graph().golden)
    file = TensorFile(path, BundleError)
    found = file.metadata.get(VERSION_KEY, "none")
    if found != VERSION:
        raise BundleError(
            f"{path}: {VERSION_KEY}: found {found[:20]}, expected {VERSION}; "
            "export the model again or use the molkv-export version that wrote this bundle"
        )
    count = len([name for name in file.entries if name.endswith(".input_ids")])
    expected = {LIMITS} | {f"texts.{index}.{field}" for index in range(count) for field in _FIELDS}
    if not count or set(file.entries) != expected:
        wrong = sorted(set(file.entries) ^ expected) or ["texts.0.input_ids"]
        raise BundleError(f"{path}: tensor {wrong[0]!r} is missing, or not expected in a file with {count} texts")
    limits = _array(file, LIMITS, "F32", (len(GoldenLimits.__struct_fields__),)).tolist()
    if not all(0 <= limit < math.inf for limit in limits):  # NaN fails this comparison, too
        raise BundleError(f"{path}: {LIMITS}: found {limits}, expected finite numbers of at least 0")
    return Golden(GoldenLimits(*limits), [_read_text(file, f"texts.{index}", bundle) for index in range(count)])


def _read_text(file: TensorFile, prefix: str, bundle: Bundle) -> GoldenText:
    vocab_size, context = bundle.config.vocab_size, bundle.config.max_position_embeddings
    length, new = (math.prod(file.entries[f"{prefix}.{field}"].shape) for field in ("input_ids", "greedy_ids"))
    top = min(TOP, vocab_size)
    shapes = {"input_ids": (length,), "top_ids": (length, top), "top_logits": (length, top)}
    shapes |= {"projection": (length, PROJECTIONS), "greedy_ids": (new,)}
    if not 0 < length <= length + new - bool(new) <= context:
        raise BundleError(
            f"{file.path}: {prefix} has {length} tokens and {new} greedy tokens, expected 1 or more tokens, and "
            f"at most {context} in total without the last greedy token"
        )
    arrays = {field: _array(file, f"{prefix}.{field}", _FIELDS[field], shape) for field, shape in shapes.items()}
    for field, array in arrays.items():
        if field.endswith("ids") and array.size and not 0 <= array.min() <= array.max() < vocab_size:
            raise BundleError(
                f"{file.path}: {prefix}.{field} holds numbers from {array.min()} to {array.max()}, "
                f"expected token ids from 0 to {vocab_size - 1}"
            )
    return GoldenText(**arrays)


def _array(file: TensorFile, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    entry = file.entries[name]
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise BundleError(
            f"{file.path}: tensor {name!r} is {entry.dtype} {list(entry.shape)}, expected {dtype} {list(shape)}"
        )
    return file.read_rows(name).view(_DTYPES[dtype]).reshape(shape)
