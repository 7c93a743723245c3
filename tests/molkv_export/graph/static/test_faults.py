"""Mistakes in running static graphs do not pass the self-test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_export import GraphOptions, export
from molkv_runtime import selftest, static_calls
from molkv_runtime.static_calls import StaticCalls, _StaticCall
from molkv_runtime.window import ExpertWindow
from tests.models import STDLIB_MINI

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "bundle"
    export(STDLIB_MINI, folder, profiles=["coreml"], graph=GraphOptions(chunk_lengths=(1, 32)))
    return folder


def _cache_is_written_one_slot_late(patch: pytest.MonkeyPatch) -> None:
    run = _StaticCall.run

    def late(self: Any) -> None:
        self._call.run()
        self._start += 1
        call, self._call = self._call, type("Nothing", (), {"run": lambda _self: None})()
        run(self)
        self._call = call

    patch.setattr(_StaticCall, "run", late)


def _mask_shows_one_slot_too_few(patch: pytest.MonkeyPatch) -> None:
    run = _StaticCall.run

    def short(self: Any) -> None:
        call = self._call

        def hide(_self: object) -> None:
            self._mask[..., max(self._start - 1, 0) :] = static_calls.HIDDEN
            call.run()

        self._call = type("Hiding", (), {"run": hide})()
        run(self)
        self._call = call

    patch.setattr(_StaticCall, "run", short)


def _new_positions_see_each_other(patch: pytest.MonkeyPatch) -> None:
    mask = StaticCalls._causal_mask

    def blind(self: Any, length: int) -> Any:
        made = mask(self, length)
        made[..., -length:] = 0
        return made

    patch.setattr(StaticCalls, "_causal_mask", blind)


def _rotation_is_that_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    rows = StaticCalls._rotary_rows
    patch.setattr(
        StaticCalls,
        "_rotary_rows",
        lambda self, name, size: {key: np.roll(table, -1, axis=0) for key, table in rows(self, name, size).items()},
    )


def _sine_has_the_wrong_sign(patch: pytest.MonkeyPatch) -> None:
    rows = StaticCalls._rotary_rows

    def wrong(self: Any, name: str, size: int) -> Any:
        tables = rows(self, name, size)
        return {key: -table if key.endswith("sin") else table for key, table in tables.items()}

    patch.setattr(StaticCalls, "_rotary_rows", wrong)


def _window_ends_with_the_padding(patch: pytest.MonkeyPatch) -> None:
    begin = ExpertWindow.begin
    patch.setattr(ExpertWindow, "begin", lambda self, part: begin(self, part._replace(length=part.rows or part.length)))


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
def test_it_is_found(break_it: Break, bundle: Path) -> None:
    assert selftest(bundle).failures == []
    with pytest.MonkeyPatch.context() as patch:
        break_it(patch)
        assert selftest(bundle).failures
