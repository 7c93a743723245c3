"""Interruptions of the writing of a store."""

from __future__ import annotations

from typing import Any

import pytest

from molkv_export.tables import table_writer


def interrupt_fill(number: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt `fill` in its n-th call, or never for 0; return the list of first ids that it was called with."""
    original, calls = table_writer.fill, list[int]()

    def fill(records: Any, source: Any, dtype: Any, start: int, threads: int) -> None:
        calls.append(start)
        if len(calls) == number:
            raise KeyboardInterrupt
        original(records, source, dtype, start, threads)

    patch.setattr(table_writer, "fill", fill)
    return calls
