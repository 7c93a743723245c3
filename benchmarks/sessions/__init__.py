"""`make bench-sessions`: the speed of conversations, saved sessions, prompt lookup and options of text generation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

Seconds = dict[str, list[float]]


def in_turns(contenders: dict[str, Callable[[], float]], runs: int) -> Seconds:
    """Return the seconds of each contender in each run, after one run for warm-up.

    The contenders take turns, so that other load on the machine affects all of them.
    """
    seconds: Seconds = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name in contenders if run % 2 else reversed(contenders):
            measured = contenders[name]()
            if run:
                seconds[name].append(measured)
    return seconds


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median of the ratios of all runs, first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [" | ".join(columns), "|".join(["---"] * len(columns)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines) + "\n"
