"""Quantized rows, compared with a second implementation that follows docs/bundle-format.md number by number."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from molkv_bundle import NF4_LEVELS, ValueDecoder
from molkv_export.tables.quantize import quantize

N, D = 3, 128
LIMIT = 2.0**15  # so that every scale fits float16

rows = npst.arrays(
    np.float32,
    (N, D),
    elements=st.floats(-LIMIT, LIMIT, width=32) | st.sampled_from([0.0, -0.0, 1e-30, 6e-8, -LIMIT, LIMIT]),
)
plenty = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large])


def _slow_decode(dtype: str, value: bytes, scale: bytes) -> list[float]:
    """Decode one row of D numbers. Python's floats are wider than float32, so each product is rounded once."""

    def half(index: int) -> float:
        return float(struct.unpack_from("<e", scale, 2 * index)[0])

    def rounded(number: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])

    if dtype == "float32":
        return list(struct.unpack(f"<{D}f", value))
    if dtype == "float16":
        return list(struct.unpack(f"<{D}e", value))
    if dtype == "int8":
        whole = struct.unpack("<f", scale)[0]
        return [rounded(code * whole) for code in struct.unpack(f"<{D}b", value)]
    nibbles = [nibble for byte in value for nibble in (byte & 15, byte >> 4)]
    if dtype == "int4":
        return [rounded((nibble - 8) * half(at // 32)) for at, nibble in enumerate(nibbles)]
    return [rounded(float(NF4_LEVELS[nibble]) * half(at // 64)) for at, nibble in enumerate(nibbles)]


def _stored(dtype: Any, exact: np.ndarray) -> np.ndarray:
    """Quantize rows into a structured array with the layout of a record."""
    if dtype in ("float32", "float16"):
        stored = np.zeros((), [("value", dtype, exact.shape)])
        stored["value"] = exact
        return stored
    value, scale = (part.numpy() for part in quantize(torch.from_numpy(exact), dtype))
    stored = np.zeros((), [("value", value.dtype, value.shape), ("scale", scale.dtype, scale.shape)])
    stored["value"], stored["scale"] = value, scale
    return stored


def _decode(decoder: ValueDecoder, stored: np.ndarray, out: np.ndarray) -> None:
    decoder.decode(stored["value"], stored["scale"] if "scale" in (stored.dtype.names or ()) else None, out)


def _decoded(dtype: Any, stored: np.ndarray) -> np.ndarray:
    out = np.full((2, N, D), np.nan, np.float32)[1]
    _decode(ValueDecoder(dtype), stored, out)
    return out


@plenty
@given(exact=rows)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4", "nf4"])
def test_the_decoder_follows_the_specification_bit_by_bit(dtype: Any, exact: np.ndarray) -> None:
    stored = _stored(dtype, exact)
    found = _decoded(dtype, stored)
    for row in range(N):
        scale = stored["scale"][row].tobytes() if "scale" in stored.dtype.names else b""
        expected = np.array(_slow_decode(dtype, stored["value"][row].tobytes(), scale), np.float32)
        assert found[row].tobytes() == expected.tobytes()


@plenty
@given(
    codes=npst.arrays(np.uint8, (N, D // 2)), scale=npst.arrays(np.float16, (N, 4), elements=st.floats(-9, 9, width=16))
)
def test_codes_that_the_quantizer_never_makes_are_decoded_too(codes: np.ndarray, scale: np.ndarray) -> None:
    stored = np.zeros((), [("value", np.uint8, (N, D // 2)), ("scale", np.float16, (N, 4))])
    stored["value"], stored["scale"] = codes, scale
    found = _decoded("int4", stored)
    for row in range(N):
        expected = np.array(_slow_decode("int4", codes[row].tobytes(), scale[row].tobytes()), np.float32)
        assert found[row].tobytes() == expected.tobytes()


def _levels(dtype: str) -> list[float]:
    return {"int8": list(range(-127, 128)), "int4": list(range(-8, 8)), "nf4": NF4_LEVELS.tolist()}[dtype]


@plenty
@given(exact=rows)
@example(exact=np.zeros((N, D), np.float32))
@example(exact=np.tile(np.float32([-1, 1]), (N, D // 2)))
@pytest.mark.parametrize("dtype", ["int8", "int4", "nf4"])
def test_every_number_is_stored_as_the_nearest_that_its_scale_allows(dtype: Any, exact: np.ndarray) -> None:
    stored = _stored(dtype, exact)
    found = _decoded(dtype, stored).astype(np.float64)
    size = {"int8": D, "int4": 32, "nf4": 64}[dtype]
    for row in range(N):
        for group, start in enumerate(range(0, D, size)):
            numbers = exact[row, start : start + size].astype(np.float64)
            scale = float(stored["scale"][row, group])
            choices = np.array(_levels(dtype)) * scale
            nearest = np.abs(numbers[:, None] - choices).min(axis=1)
            largest = np.abs(numbers).max()
            error = np.abs(found[row, start : start + size] - numbers)
            assert (error <= nearest + 2e-7 * largest + 1e-45).all()
            # Only the rounding of the scale changes the number of the largest magnitude.
            assert error[np.abs(numbers).argmax()] <= largest * 2**-11 + 8 * 2**-25


@pytest.mark.parametrize("dtype", ["int4", "nf4"])
def test_a_scale_that_float16_cannot_hold_is_infinite(dtype: Any) -> None:
    assert torch.isinf(quantize(torch.full((1, D), 6e5), dtype).scale).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4", "nf4"])
def test_decoding_the_same_shape_again_allocates_nothing_of_its_size(dtype: Any) -> None:
    stored = _stored(dtype, np.random.default_rng(0).standard_normal((N, 16 * 1024), np.float32))
    decoder, out = ValueDecoder(dtype), np.empty((N, 16 * 1024), np.float32)
    _decode(decoder, stored, out)
    tracemalloc.start()
    _decode(decoder, stored, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 2
