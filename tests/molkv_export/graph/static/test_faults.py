"""The self-test finds mistakes in running static graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from molkv_bundle import HIDDEN, Arrays, Records, rotary_tables
from molkv_export import GraphOptions
from molkv_runtime import Call, DenseGraph, selftest, static_calls
from molkv_runtime.experts import Part
from molkv_runtime.window import ExpertWindow

pytestmark = pytest.mark.slow

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def bundle(bundles: Callable[..., Path]) -> Path:
    return bundles("stdlib-mini", "float16", profiles=["coreml"], graph=GraphOptions(chunk_lengths=(1, 32)))


def _change_inputs(patch: pytest.MonkeyPatch, change: Callable[[Arrays], Arrays]) -> None:
    """Let every call read changed copies of its inputs."""
    bind = DenseGraph.bind

    def broken(self: DenseGraph, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        read = {name: array.copy() for name, array in inputs.items()}
        call = bind(self, length, read, outputs)

        def run() -> None:
            for name, array in change(inputs).items():
                read[name][...] = array
            call.run()

        return cast(Call, SimpleNamespace(run=run))

    patch.setattr(DenseGraph, "bind", broken)


def _cache_is_written_one_slot_late(patch: pytest.MonkeyPatch) -> None:
    axes = {"key": -1, "value": -2}  # keys are [Hkv, head_dim, S], values [Hkv, S, head_dim]

    def late(inputs: Arrays) -> Arrays:
        caches = {name: array for name, array in inputs.items() if name.startswith("past_key_values.")}
        return {**inputs, **{name: np.roll(array, 1, axes[name.split(".")[-1]]) for name, array in caches.items()}}

    _change_inputs(patch, late)


def _mask_shows_one_slot_too_few(patch: pytest.MonkeyPatch) -> None:
    def short(inputs: Arrays) -> Arrays:
        mask = inputs["attention_mask"].copy()  # [1, G*T, S+T]
        cached = mask[..., : -len(inputs["inputs_embeds"])]
        seen = int((cached[0, 0] == 0).sum())
        cached[..., max(seen - 1, 0) :] = HIDDEN
        return {**inputs, "attention_mask": mask}

    _change_inputs(patch, short)


def _new_positions_see_each_other(patch: pytest.MonkeyPatch) -> None:
    def blind(inputs: Arrays) -> Arrays:
        mask = inputs["attention_mask"].copy()
        mask[..., -len(inputs["inputs_embeds"]) :] = 0
        return {**inputs, "attention_mask": mask}

    _change_inputs(patch, blind)


def _rotation_is_that_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(static_calls, "rotary_tables", lambda positions, *rest: rotary_tables(positions + 1, *rest))


def _sine_has_the_wrong_sign(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(static_calls, "rotary_tables", lambda positions, *rest: rotary_tables(-positions, *rest))


def _window_ends_with_the_padding(patch: pytest.MonkeyPatch) -> None:
    original = ExpertWindow.take_in

    def broken(self: ExpertWindow, part: Part, records: Records) -> Arrays:
        length = part.rows or part.length
        return original(self, part._replace(length=length), np.resize(records, length))

    patch.setattr(ExpertWindow, "take_in", broken)


@pytest.mark.parametrize(
    "break_it",
    [
        _cache_is_written_one_slot_late,
        _mask_shows_one_slot_too_few,
        _new_positions_see_each_other,
        _rotation_is_that_of_the_next_position,
        _sine_has_the_wrong_sign,
        _window_ends_with_the_padding,
    ],
    ids=lambda break_it: break_it.__name__.strip("_"),
)
def test_the_selftest_finds_the_fault(break_it: Break, bundle: Path) -> None:
    assert selftest(bundle).failures == []
    with pytest.MonkeyPatch.context() as patch:
        break_it(patch)
        assert selftest(bundle).failures
