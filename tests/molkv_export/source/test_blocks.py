"""The scale of a block that a graph stores is used only if it is a correct result of the exporter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molkv_export.graph.blocks import encode_blocks
from molkv_export.source.blocks import checked_scales, rounded_in_blocks

SIZE = 32


def _weight(rows: int = 2100) -> torch.Tensor:  # more rows than are rounded at a time
    return torch.randn(rows, 80, generator=torch.Generator().manual_seed(5))


def _searched(weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(encode_blocks(np.ascontiguousarray(weight.numpy().T), 4, SIZE)[1])


def _rounded(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Round a weight with the scales of a graph."""
    return rounded_in_blocks(weight, SIZE, checked_scales(weight, SIZE, scales))


def _multiples(rounded: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the rounded numbers [out, in] as multiples of their blocks' scales."""
    return rounded / scales.repeat_interleave(SIZE, 1)[:, : rounded.shape[1]]


def test_a_correct_scale_is_used() -> None:
    weight = _weight()
    scales = _searched(weight)
    rounded = _rounded(weight, scales)
    multiples = _multiples(rounded, scales)
    assert (multiples - multiples.round()).abs().max() < 1e-5
    assert (round(multiples.min().item()), round(multiples.max().item())) == (-8, 7)
    inside = (multiples > -7.5) & (multiples < 6.5)
    distance = (weight - rounded).abs() / scales.repeat_interleave(SIZE, 1)[:, :80].abs()
    assert distance[inside].max() <= 0.5 + 1e-6
    plain = rounded_in_blocks(weight, SIZE, None)
    assert (weight - rounded).square().sum() < 0.92 * (weight - plain).square().sum()


def test_the_scale_by_the_largest_magnitude_is_used() -> None:
    weight = _weight(3)
    blocks = torch.nn.functional.pad(weight, (0, 16)).reshape(3, -1, SIZE)
    scales = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0] / -8
    assert torch.equal(_rounded(weight, scales), rounded_in_blocks(weight, SIZE, None))
    assert torch.equal(_multiples(rounded_in_blocks(weight, SIZE, None), scales).amin(1), torch.full((3,), -8.0))


@pytest.mark.parametrize("factor", [1 + 2**-23, 1 - 2**-23, 128 / 127, 0.98, 2, 0, float("nan"), float("inf")])
def test_another_scale_is_not_used(factor: float) -> None:
    weight = _weight(500)
    right = _searched(weight)
    wrong = right.clone()
    wrong[7::10] *= factor
    expected = _rounded(weight, right)
    expected[7::10] = rounded_in_blocks(weight, SIZE, None)[7::10]
    assert torch.equal(_rounded(weight, wrong), expected)


def test_a_scale_that_is_the_best_for_its_codes_but_too_large_is_not_used() -> None:
    weight = torch.ones(1, SIZE)
    weight[0, 3] = 8
    scale = torch.tensor([[8.0]])  # 8 is 1 step, all other numbers are 0 steps, and 8 is the best scale for these codes
    assert torch.equal(_rounded(weight, scale), weight)
