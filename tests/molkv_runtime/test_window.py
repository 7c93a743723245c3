"""The expert window against a list of positions."""

from __future__ import annotations

import numpy as np
import pytest

from molkv_bundle import Arrays, MolkvConfig, Records, record_dtype
from molkv_runtime.calls import take_in
from molkv_runtime.experts import InputFormat, Part
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


def _records(positions: range) -> Records:
    """Records whose every value tells position and expert."""
    records = np.zeros(len(positions), record_dtype(CONFIG, "float32"))
    for row, position in enumerate(positions):
        for expert in range(2):
            records["layers"]["value"][row, 0, expert] = 100 * expert + position
            records["layers"]["key"][row, 0, expert] = 100 * expert + position
    return records


def _take_in(window: ExpertWindow, part: Part, size: int) -> Arrays:
    records = _records(range(part.start, part.start + part.length))
    groups = [records[at : at + size] for at in range(0, part.length, size)]
    return take_in(window, part, groups, np.empty((part.length, CONFIG.hidden_size), np.float32))


def _seen(values: np.ndarray, mask: np.ndarray) -> list[list[float]]:
    """What each position of blocks [blocks, C, ...] sees, sorted."""
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
@pytest.mark.parametrize("group", [1, 2, 3, 7, 15])
def test_prefill_shows_each_position_its_window_whatever_came_before(first: int, length: int, group: int) -> None:
    window = ExpertWindow(CONFIG, 2, 64, InputFormat())
    for position in range(first):
        window.decode(1, position, _records(range(position, position + 1)))
    inputs = _take_in(window, Part(1, first, length, follows=False, keep=0), group)
    for kind in ("expert_value.0", "expert_key.0"):
        seen = _seen(inputs[kind], inputs["expert_mask"])
        assert seen == [_expected(position) for position in range(first, first + length)]


@pytest.mark.parametrize("prompt", [1, 3, 5, 10])
def test_decode_shows_the_last_positions_after_any_prompt(prompt: int) -> None:
    window = ExpertWindow(CONFIG, 2, 64, InputFormat())
    _take_in(window, Part(0, 0, prompt, follows=False, keep=0), 4)
    window.finish(0, prompt)
    for position in range(prompt, prompt + 12):
        window.decode(0, position, _records(range(position, position + 1)))
        inputs = {name: array[:1] for name, array in window.decode_inputs.items()}
        assert _seen(inputs["expert_value.0"], inputs["expert_mask"]) == [_expected(position)]


def test_sequences_do_not_touch_each_other() -> None:
    window = ExpertWindow(CONFIG, 2, 64, InputFormat())
    window.decode(0, 0, _records(range(7, 8)))
    assert not window.decode_inputs["expert_value.0"][1].any()
    assert np.isneginf(window.decode_inputs["expert_mask"][1]).all()


@pytest.mark.parametrize("parts", [(5, 5, 3), (10, 5, 1), (3, 3, 3), (1, 1, 1, 1), (15, 10), (2, 2)])
def test_parts_that_follow_each_other_are_one_prompt(parts: tuple[int, ...]) -> None:
    window, start = ExpertWindow(CONFIG, 2, 64, InputFormat()), 2
    for position in range(start):
        window.decode(1, position, _records(range(position, position + 1)))
    for number, length in enumerate(parts):
        part = Part(1, start, length, follows=number > 0, keep=0)
        inputs = _take_in(window, part, 4)
        seen = _seen(inputs["expert_value.0"], inputs["expert_mask"])
        assert seen == [_expected(position) for position in range(start, start + length)]
        start += length
    window.finish(1, start)
    window.decode(1, start, _records(range(start, start + 1)))
    decoded = {name: array[1:] for name, array in window.decode_inputs.items()}
    assert _seen(decoded["expert_key.0"], decoded["expert_mask"]) == [_expected(start)]
