"""The expert window, compared with a list of the positions that it must show."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import msgspec
import numpy as np
import pytest

from molkv_bundle import Arrays, Floats, MolkvConfig, Records, RowDtype, WindowDtype, record_dtype
from molkv_runtime.experts import InputFormat, Part
from molkv_runtime.record_decoder import RecordDecoder
from molkv_runtime.window import ExpertWindow

CONFIG = MolkvConfig(
    model_type="molkv",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    max_position_embeddings=64,
    num_experts=2,
    expert_key_size=4,
    expert_window=5,
    expert_rope=False,
)
ROTATED = msgspec.structs.replace(CONFIG, expert_rope=True)


def _records(positions: range) -> Records:
    """Return records in which each value identifies position and expert."""
    records = np.zeros(len(positions), record_dtype(CONFIG, "float32"))
    for row, position in enumerate(positions):
        for expert in range(2):
            records["layers"]["value"][row, 0, expert] = 100 * expert + position
            records["layers"]["key"][row, 0, expert] = 100 * expert + position
    return records


def _window(config: MolkvConfig = CONFIG, batch_size: int = 2, inputs: InputFormat | None = None) -> ExpertWindow:
    return ExpertWindow(config, batch_size, 64, inputs or InputFormat(), RecordDecoder(config, "float32"))


def _take_in(window: ExpertWindow, part: Part) -> Arrays:
    return window.take_in(part, _records(range(part.start, part.start + part.length)))


def _seen(values: np.ndarray, mask: np.ndarray) -> list[list[float]]:
    """Return the sorted values that each position of blocks [blocks, C, ...] sees."""
    return [
        sorted(block_values[row == 0, 0].tolist())
        for block_values, block_mask in zip(values, mask, strict=True)
        for row in block_mask
    ]


def _expected(position: int) -> list[float]:
    window = range(max(0, position - 4), position + 1)
    return sorted([float(p) for p in window] + [100.0 + p for p in window])


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 7, 20])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 10, 15])
def test_prefill_shows_each_position_its_window_whatever_came_before(first: int, length: int) -> None:
    window = _window()
    for position in range(first):
        window.decode(1, position, _records(range(position, position + 1)))
    inputs = _take_in(window, Part(1, first, length, follows=False, keep=0))
    for kind in ("expert_value.0", "expert_key.0"):
        seen = _seen(inputs[kind], inputs["expert_mask"])
        assert seen == [_expected(position) for position in range(first, first + length)]


def _random_values(rows: int) -> Records:
    """Return records of random values, with rows of zeros, of subnormal numbers, and of ties between two codes."""
    records = np.zeros(rows, record_dtype(CONFIG, "float32"))
    values = records["layers"]["value"]
    values[...] = (
        np.random.default_rng(0).standard_normal(values.shape) * 10.0 ** np.arange(-8, 8)[:rows, None, None, None]
    )
    values[0, 0, 0] = 0
    values[1, 0, 0] = np.float32(1e-40) * np.arange(16)
    values[2, 0, 0] = np.arange(16) * 8.5  # a step of 1 would need 127
    values[2, 0, 0, 15] = -127
    return records


def test_values_are_rounded_on_entry_as_the_format_says() -> None:
    window = _window(batch_size=1, inputs=InputFormat(window_dtype="int8"))
    records = _random_values(5)
    window.take_in(Part(0, 0, 5, follows=False, keep=0), records)
    window.finish(0, 5)
    codes, scales = (window.decode_inputs[name][0] for name in ("expert_value.0", "expert_value_scale.0"))
    assert scales.shape == (1, 10)
    for row, values in enumerate(records["layers"]["value"].reshape(10, 16)):
        scale = np.abs(values).max() / np.float32(127)
        scale = np.float32(0) if scale < np.float32(2**-126) else scale
        assert scales[0, row] == scale
        # Python also rounds to the nearest, and ties to the even one.
        assert codes[row].tolist() == [round(float(value / scale)) if scale else 0 for value in values]
    assert codes[4].tolist() == [0, 8, 17, 26, 34, 42, 51, 60, 68, 76, 85, 94, 102, 110, 119, -127]


@pytest.mark.parametrize("first", [0, 3, 7])
@pytest.mark.parametrize("length", [1, 4, 10])
def test_an_int8_window_shows_the_positions_that_a_float_one_does(first: int, length: int) -> None:
    windows = [_window(inputs=InputFormat(window_dtype=dtype)) for dtype in ("float32", "int8")]
    shown = []
    for window in windows:
        for position in range(first):
            window.decode(1, position, _records(range(position, position + 1)))
        inputs = [_take_in(window, Part(1, first, length, follows=False, keep=0))]
        window.finish(1, first + length)
        window.decode(1, first + length, _records(range(first + length, first + length + 1)))
        inputs.append({name: array[1:] for name, array in window.decode_inputs.items()})
        shown.append(inputs)
    for exact, found in zip(*shown, strict=True):
        assert np.array_equal(exact["expert_key.0"], found["expert_key.0"])
        assert np.array_equal(exact["expert_mask"], found["expert_mask"])
        values = found["expert_value.0"] * found["expert_value_scale.0"].swapaxes(1, 2)
        # All numbers of a value are equal, so all its codes are 127.
        np.testing.assert_allclose(values, exact["expert_value.0"], rtol=1e-6)


@pytest.mark.parametrize("prompt", [1, 3, 5, 10])
def test_decode_shows_the_last_positions_after_any_prompt(prompt: int) -> None:
    window = _window()
    _take_in(window, Part(0, 0, prompt, follows=False, keep=0))
    window.finish(0, prompt)
    for position in range(prompt, prompt + 12):
        window.decode(0, position, _records(range(position, position + 1)))
        inputs = {name: array[:1] for name, array in window.decode_inputs.items()}
        assert _seen(inputs["expert_value.0"], inputs["expert_mask"]) == [_expected(position)]


def test_sequences_do_not_touch_each_other() -> None:
    window = _window()
    window.decode(0, 0, _records(range(7, 8)))
    assert not window.decode_inputs["expert_value.0"][1].any()
    assert np.isneginf(window.decode_inputs["expert_mask"][1]).all()


@pytest.mark.parametrize("parts", [(5, 5, 3), (10, 5, 1), (3, 3, 3), (1, 1, 1, 1), (15, 10), (2, 2)])
def test_parts_that_follow_each_other_are_one_prompt(parts: tuple[int, ...]) -> None:
    window, start = _window(), 2
    for position in range(start):
        window.decode(1, position, _records(range(position, position + 1)))
    for number, length in enumerate(parts):
        part = Part(1, start, length, follows=number > 0, keep=0)
        inputs = _take_in(window, part)
        seen = _seen(inputs["expert_value.0"], inputs["expert_mask"])
        assert seen == [_expected(position) for position in range(start, start + length)]
        start += length
    window.finish(1, start)
    window.decode(1, start, _records(range(start, start + 1)))
    decoded = {name: array[1:] for name, array in window.decode_inputs.items()}
    assert _seen(decoded["expert_key.0"], decoded["expert_mask"]) == [_expected(start)]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_keys_are_rotated_by_their_positions_in_prefill_decode_and_restore(dtype: WindowDtype) -> None:
    window = _window(ROTATED, inputs=InputFormat(window_dtype=dtype))
    stored = _random_values(15)
    stored["layers"]["key"] = np.random.default_rng(1).standard_normal(stored["layers"]["key"].shape)
    keys = window.take_in(Part(1, 0, 10, follows=False, keep=0), stored[:10])["expert_key.0"]
    for position in range(10):
        block, row = divmod(position, 5)
        shown = keys[block].reshape(9, 2, 4)
        _check_rotated(shown[row + 4], stored, position)
        if block == 0 and row:  # the next block sees this position, too
            _check_rotated(keys[1].reshape(9, 2, 4)[row - 1], stored, position)
    window.finish(1, 10)
    window.restore(1, 7, stored[7:10])
    window.decode(1, 10, stored[10:11])
    ring = window.decode_inputs["expert_key.0"][1].reshape(5, 2, 4)
    for position in range(6, 11):
        _check_rotated(ring[position % 5], stored, position)


def _check_rotated(found: Floats, stored: Records, position: int) -> None:
    """Check keys [N, dk] at a position; each pair of numbers is a complex number that is turned by an angle."""
    keys = stored["layers"]["key"][position, 0].astype(np.float64)
    angles = position * ROTATED.rope_theta ** (-np.arange(2) / 2)
    turned = (keys[:, :2] + 1j * keys[:, 2:]) * np.exp(1j * angles)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-5)


def test_later_prompts_allocate_nothing_but_small_arrays() -> None:
    config = msgspec.structs.replace(ROTATED, hidden_size=1024, num_hidden_layers=4, expert_layers=None)
    for dtype in get_args(WindowDtype):
        for stored in get_args(RowDtype):
            window = ExpertWindow(config, 1, 64, InputFormat(window_dtype=dtype), RecordDecoder(config, stored))
            records = np.zeros(20, record_dtype(config, stored))
            window.take_in(Part(0, 0, 20, follows=False, keep=0), records)
            window.take_in(Part(0, 20, 20, follows=True, keep=0), records)
            tracemalloc.start()
            try:
                window.take_in(Part(0, 40, 20, follows=True, keep=0), records)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            rows_of_a_block = 4 * config.hidden_size * config.num_experts * 5
            assert peak < rows_of_a_block, (dtype, stored)
