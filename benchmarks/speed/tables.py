"""The tables and the figure of docs/performance.md, "Speed", and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.sessions import table
from benchmarks.speed.contenders import TITLES, title
from benchmarks.speed.contest import Spread
from benchmarks.speed.figure import Bar
from benchmarks.speed.measured import Measured
from benchmarks.speed.parts import CONTEXTS, DECODE, PREFILL


def tables(measured: Measured) -> Iterator[str]:
    """Yield each table that has rows, as Markdown with a title."""
    for name, columns, rows in (
        ("tokens a second", ("", "prefill 1,024", "decode at 128", "at 512", "at 1,024"), _rates(measured)),
        ("ratios of speeds: median (quartiles)", ("", *measured.dtypes), _ratios(measured)),
        ("memory", ("", "peak RSS", "dense weights", "KV cache", "window", "the rest"), _memory(measured)),
        ("share of the memory bandwidth", ("decode at 512", *measured.dtypes), _bandwidth(measured)),
    ):
        if rows:
            yield f"**{name}**\n\n{table(columns, rows)}"


def bars(measured: Measured) -> list[Bar]:
    """Return the bars of the figure: the contenders with both prefill and decode at 512."""
    found = []
    for name in _names(measured):
        kind = name.split(" ")[0]
        prefill, decode = measured.result((name, PREFILL)), measured.result((name, DECODE))
        if kind in ("dense", "molkv", "genai", "eager", "naive") and prefill and decode:
            ours = kind in ("dense", "molkv")
            found.append(Bar(title(name), PREFILL.length / prefill.median, 1 / decode.median, ours))
    return found


def as_json(measured: Measured) -> dict[str, Any]:
    """Return all that was measured, in seconds and bytes, and the ratios."""
    return {
        "bandwidth": dict(zip(("before", "after"), measured.bandwidth, strict=True)),
        "results": [
            {
                "contest": contest,
                "contender": name,
                **task._asdict(),
                **result._asdict(),
                **Spread.of(result.seconds)._asdict(),
            }
            for contest, found in measured.contests.items()
            for (name, task), result in found.items()
        ],
        "ratios": [{"title": one.title, "dtype": one.dtype, **one.spread._asdict()} for one in measured.ratios()],
        "memory": [
            {"dtype": dtype, "peak": peak._asdict(), **sizes._asdict(), "rest": rest._asdict()}
            for dtype, peak, sizes, rest in measured.memory()
        ],
    }


def _names(measured: Measured) -> list[str]:
    """Return the names of all contenders, in the order of the table."""
    kinds = ("dense", "baseline-dense", "mole", "molkv", "baseline-molkv", "ram")
    ours = [f"{kind} {dtype}" for dtype in measured.dtypes for kind in kinds]
    return [*ours, *(f"genai {dtype}" for dtype in measured.dtypes), "eager", "naive"]


def _rates(measured: Measured) -> list[list[str]]:
    rows = []
    for name in _names(measured):
        cells = []
        for task in (PREFILL, *sorted(CONTEXTS)):
            result = measured.result((name, task))
            tokens, digits = (task.length, 0) if task == PREFILL else (1, 1)
            cells.append(f"{tokens / result.median:.{digits}f}" if result else "")
        if any(cells):
            rows.append([title(name), *cells])
    return rows


def _ratios(measured: Measured) -> list[list[str]]:
    rows: dict[str, dict[str, str]] = {}
    for ratio in measured.ratios():
        median, low, high = ratio.spread
        rows.setdefault(ratio.title, {})[ratio.dtype] = f"{median:.3f} ({low:.3f} to {high:.3f})"
    return [[title, *(cells.get(dtype, "") for dtype in measured.dtypes)] for title, cells in rows.items()]


def _memory(measured: Measured) -> list[list[str]]:
    rows = []
    for dtype, peak, sizes, rest in measured.memory():
        cells = [f"{size / 1e6:.0f} MB" for size in (peak.median, *sizes, rest.median)]
        rows.append(
            [dtype, *cells[:-1], f"{cells[-1]} ({rest.lower_quartile / 1e6:.0f} to {rest.upper_quartile / 1e6:.0f})"]
        )
    return rows


def _bandwidth(measured: Measured) -> list[list[str]]:
    rows = []
    for kind in ("dense", "molkv"):
        cells = []
        for dtype in measured.dtypes:
            if result := measured.result((f"{kind} {dtype}", DECODE)):
                rate = sum(measured.sizes(kind, dtype, DECODE.length)) / result.median
                cells.append(f"{rate / 1e9:.1f} GB/s, {rate / measured.bandwidth[0]:.2f}")
        if cells:
            rows.append([TITLES[kind], *cells])
    return rows
