"""Draw the speeds of all contenders as a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

_OURS, _OTHERS = "#2f6f9f", "#b0b0b0"


class Bar(NamedTuple):
    """The speed of a contender in tokens per second."""

    title: str
    prefill: float
    decode: float
    ours: bool


def draw(bars: list[Bar], path: Path) -> None:
    """Draw prefill and decode side by side, and save the chart as a PNG file."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    titles = [bar.title for bar in bars]
    colors = [_OURS if bar.ours else _OTHERS for bar in bars]
    for axes, what, rates in (
        (left, "prefill of 1,024 tokens", [bar.prefill for bar in bars]),
        (right, "decode at context 512", [bar.decode for bar in bars]),
    ):
        drawn = axes.barh(titles, rates, color=colors)
        axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
        axes.set_title(f"{what}, tokens a second", fontsize=10)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    left.invert_yaxis()
    figure.savefig(path, dpi=110)
