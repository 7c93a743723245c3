"""Figures of a validation report, drawn by matplotlib."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from molkv_export.parity.bisect import Bisection, PhaseErrors
from molkv_export.parity.compare import Histogram

_TOP = 1e3  # an error above this value, such as infinity, is drawn at this height


class Palette(NamedTuple):
    """Colours of a figure."""

    ink: str
    muted: str
    limit: str
    series: tuple[str, ...]


PAPER = Palette("#1f2328", "#8b949e", "#cf222e", ("#57606a", "#0969da", "#bf8700", "#8250df", "#1a7f37"))
# Placeholders: `_svg` replaces them by CSS variables, so that a page can be light or dark.
_PAGE = Palette("#010203", "#010204", "#010205", ("#010206", "#010207", "#010208", "#010209", "#01020a"))
_VARIABLES = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--fail)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_PAGE.series)},
}

# Norms are not drawn: their errors are as large as those of their inputs, so each line would appear twice.
_DRAWN: dict[str, str] = {
    "residual": "o",
    "attention": "s",
    "feed_forward": "^",
    "expert_scores": "v",
    "experts": "D",
}


def error_by_layer(axes: Axes, phase: PhaseErrors, limit: float, palette: Palette) -> None:
    """Draw the relative error of each branch in one phase, with the layers on the horizontal axis."""
    after_last = 1 + max((error.layer for error in phase.errors if error.layer is not None), default=0)
    for (branch, marker), colour in zip(_DRAWN.items(), palette.series, strict=True):
        # A logarithmic axis cannot show 0.
        points = [error for error in phase.errors if error.branch == branch and error.error > 0]
        if points:
            layers = [after_last if error.layer is None else error.layer for error in points]
            errors = [min(error.error, _TOP) for error in points]
            label = branch.replace("_", " ")
            axes.plot(layers, errors, marker=marker, markersize=4, linewidth=1.3, color=colour, label=label)
    axes.axhline(limit, color=palette.limit, linewidth=1, linestyle="--", label="limit")
    axes.set_yscale("log")
    axes.set_xticks(range(after_last + 1), [*map(str, range(after_last)), "end"])
    axes.set_xlabel("layer")
    axes.set_title(phase.phase, loc="left", fontsize=10, color=palette.ink)
    _quiet(axes, palette)
    axes.legend(
        ncols=3, fontsize=8, frameon=False, labelcolor=palette.ink, loc="upper center", bbox_to_anchor=(0.5, -0.2)
    )


def kl_distribution(axes: Axes, histogram: Histogram, mean: float, limit: float, palette: Palette) -> None:
    """Draw a histogram of the KL divergence of all positions."""
    edges = histogram.edges
    widths = [b - a for a, b in itertools.pairwise(edges)]
    axes.bar(
        edges[:-1],
        histogram.counts,
        widths,
        align="edge",
        color=palette.series[1],
        edgecolor=palette.ink,
        linewidth=0.5,
    )
    axes.set_xscale("log")
    axes.axvline(mean, color=palette.ink, linewidth=1, label="mean")
    axes.axvline(limit, color=palette.limit, linewidth=1, linestyle="--", label="limit of the mean")
    filled = [index for index, count in enumerate(histogram.counts) if count]
    last = max([edges[filled[-1] + 1], 3 * limit]) if filled else 1.0
    axes.set_xlim(edges[filled[0]] if filled else edges[0], last)
    axes.set_xlabel("KL divergence, nats")
    axes.set_ylabel("positions", color=palette.muted)
    _quiet(axes, palette)
    axes.legend(
        ncols=2, fontsize=8, frameon=False, labelcolor=palette.ink, loc="upper center", bbox_to_anchor=(0.5, -0.2)
    )


def _quiet(axes: Axes, palette: Palette) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.muted)
    axes.tick_params(colors=palette.muted, labelcolor=palette.ink, labelsize=8, which="both")
    axes.xaxis.label.set_color(palette.ink)
    axes.xaxis.label.set_fontsize(9)
    axes.grid(axis="y", color=palette.muted, alpha=0.25, linewidth=0.6)
    axes.set_facecolor("none")


def draw_bisection(bisection: Bisection, path: Path) -> None:
    """Write the errors by layer to a PNG or SVG file."""
    figure = Figure(figsize=(5 * len(bisection.phases), 4), layout="constrained", dpi=150)
    for axes, phase in zip(
        figure.subplots(1, len(bisection.phases), sharey=True, squeeze=False)[0], bisection.phases, strict=True
    ):
        error_by_layer(axes, phase, bisection.limit, PAPER)
    title = bisection.culprit or f"all errors are at most {bisection.limit:g}, the limit for rounding"
    figure.suptitle(title, fontsize=9, color=PAPER.ink)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def bisection_svg(bisection: Bisection) -> list[str]:
    """Return the errors by layer as SVG, one drawing for each phase, in the colours of the surrounding page."""
    drawings = []
    for phase in bisection.phases:
        figure = _page_figure()
        error_by_layer(figure.subplots(), phase, bisection.limit, _PAGE)
        drawings.append(_svg(figure))
    return drawings


def kl_svg(histogram: Histogram, mean: float, limit: float) -> str:
    """Return the histogram of KL divergence as SVG, in the colours of the surrounding page."""
    figure = _page_figure()
    kl_distribution(figure.subplots(), histogram, mean, limit, _PAGE)
    return _svg(figure)


def _page_figure() -> Figure:
    return Figure(figsize=(4.8, 3.4), layout="constrained")


def _svg(figure: Figure) -> str:
    """Return a figure as SVG without background, with the font and the colours of the surrounding page."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "molkv"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    drawing = out.getvalue()
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    return drawing[drawing.index("<svg") :]
