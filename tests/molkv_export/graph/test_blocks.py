"""Rounding in blocks: the squared error is small and never above that of the scale by the largest magnitude."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from molkv_bundle import Floats
from molkv_export.graph.blocks import encode_blocks, is_on_grid
from molkv_export.graph.choices import BLOCK_SIZES

Exact = npt.NDArray[np.float64]


def _decoded(weight: Floats, bits: int, size: int) -> Exact:
    """Return a weight [in, out] after rounding, as the format defines it."""
    codes, scales = encode_blocks(weight, bits, size)
    steps = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1)
    steps = steps.reshape(*scales.shape, size).astype(np.float64) - 2 ** (bits - 1)
    rounded: Exact = (steps * scales[..., None]).reshape(len(codes), -1)[:, : len(weight)].T
    return rounded


def _blocks(weight: npt.NDArray[Any], size: int) -> Exact:
    """Return the blocks [out, blocks, size] of a weight [in, out]; the last one is filled with zeros."""
    padded = np.pad(weight.astype(np.float64), ((0, -len(weight) % size), (0, 0)))
    return padded.T.reshape(weight.shape[1], -1, size)


def _errors(weight: Floats, bits: int, size: int) -> Exact:
    """Return the squared error of each block."""
    errors: Exact = np.square(_blocks(_decoded(weight, bits, size) - weight, size)).sum(axis=-1)
    return errors


def _errors_by_largest(weight: Floats, bits: int, size: int) -> Exact:
    """Return the squared error of each block if its number with the largest magnitude becomes the lowest code."""
    half, exact = 2 ** (bits - 1), _blocks(weight, size)
    largest = np.take_along_axis(exact, np.abs(exact).argmax(axis=-1)[..., None], axis=-1)
    scale = np.where(largest == 0, 1, largest / -half)
    errors: Exact = np.square((exact / scale).round().clip(-half, half - 1) * scale - exact).sum(axis=-1)
    return errors


def _weights() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    normal = random.standard_normal((200, 300))  # 200 is not a multiple of any block
    return {
        "normal": normal.astype(np.float32),
        "long tails": random.standard_t(2, (200, 300)).astype(np.float32),
        "bfloat16": normal.astype(ml_dtypes.bfloat16).astype(np.float32),
        "few numbers": random.integers(-9, 10, (200, 300)).astype(np.float32),
        "one outlier": (np.eye(200, 300) * 100 + normal).astype(np.float32),
    }


@pytest.mark.parametrize("kind", _weights())
@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_no_block_has_a_larger_error_than_with_the_scale_by_the_largest_magnitude(
    kind: str, size: int, bits: int
) -> None:
    weight = _weights()[kind]
    limit = _errors_by_largest(weight, bits, size)
    assert (_errors(weight, bits, size) <= limit * (1 + 1e-6)).all()  # the scale is a float32 number


@pytest.mark.parametrize("size", [32, 128])
def test_a_random_weight_has_a_smaller_error(size: int) -> None:
    weight = _weights()["normal"]
    assert _errors(weight, 4, size).sum() < 0.9 * _errors_by_largest(weight, 4, size).sum()


def _on_a_grid(size: int, lowest: int) -> Floats:
    """Return a weight as training for 4 bits leaves it: whole multiples of a step, one step for each block."""
    random = np.random.default_rng(1)
    largest = random.integers(1, 8, (6, 50, 1))  # many blocks do not use all codes
    steps = random.integers(np.maximum(lowest, -largest - 1), largest + 1, (6, 50, size))
    steps[..., 0] = largest[..., 0]
    weight = steps * random.uniform(0.001, 1, (6, 50, 1)).astype(np.float32)
    return np.ascontiguousarray(weight.transpose(0, 2, 1).reshape(6 * size, 50), np.float32)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("lowest", [-7, -8])
def test_a_weight_that_is_on_a_grid_of_4_bits_stays_as_it_is(size: int, lowest: int) -> None:
    weight = _on_a_grid(size, lowest)
    np.testing.assert_allclose(_decoded(weight, 4, size), weight, rtol=1e-6)
    np.testing.assert_allclose(_decoded(-weight, 4, size), -weight, rtol=1e-6)
    coarse = weight.astype(ml_dtypes.bfloat16).astype(np.float32)  # as a checkpoint stores it
    loss = np.sqrt(_errors(coarse, 4, size).sum() / np.square(coarse.astype(np.float64)).sum())
    assert loss < 2**-8  # the distance of a bfloat16 number from the grid
    assert np.sqrt(_errors_by_largest(weight, 4, size).sum() / np.square(weight).sum()) > 0.02


def test_the_result_does_not_depend_on_the_pieces() -> None:
    weight = np.random.default_rng(0).standard_normal((96, 700), np.float32)  # more columns than a piece has
    codes, scales = encode_blocks(weight, 4, 64)
    parts = [encode_blocks(np.ascontiguousarray(part), 4, 64) for part in np.split(weight, [7, 300, 650], axis=1)]
    assert np.array_equal(codes, np.concatenate([part for part, _ in parts]))
    assert np.array_equal(scales, np.concatenate([part for _, part in parts]))


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    weight = np.random.default_rng(5).normal(size=(64, 1300)).astype(np.float32)
    for ours, theirs in zip(
        encode_blocks(weight, 4, 32, threads=1), encode_blocks(weight, 4, 32, threads=3), strict=True
    ):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("most", range(1, 8))
def test_blocks_of_quantization_aware_training_may_use_a_part_of_the_codes(most: int) -> None:
    random = np.random.default_rng(most)
    codes = random.integers(-most - 1, most + 1, size=(48, 4, 32))
    weight = (codes * np.exp(random.normal(size=(48, 4, 1))) / 50).reshape(48, 128)
    weight = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert is_on_grid(weight, 32)
    found = _decoded(np.ascontiguousarray(weight.T), 4, 32)
    assert np.linalg.norm(found - weight.T) < 0.002 * np.linalg.norm(weight)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_weights_of_usual_training_are_on_no_grid(dtype: npt.DTypeLike) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 128)).astype(dtype).astype(np.float32)
    assert not is_on_grid(weight, 32)
    assert not is_on_grid(weight[:, :100], 32)  # no whole number of blocks


@pytest.mark.parametrize("exponent", [-149, -148, -140, -126, 100])
def test_numbers_at_the_ends_of_float32_are_rounded(exponent: int) -> None:
    weight = np.ldexp(_weights()["few numbers"], exponent).astype(np.float32)
    limit = _errors_by_largest(weight, 4, 32)
    # The scale itself is rounded, and its last bit is 2^-149.
    slack = 32 * (8 * 2.0**-149) ** 2
    assert (_errors(weight, 4, 32) <= limit * (1 + 1e-6) + slack).all()
    assert np.array_equal(_decoded(np.zeros((40, 3), np.float32), 4, 16), np.zeros((40, 3)))
