"""A validation report as one self-contained HTML page and as JSON."""

from __future__ import annotations

from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from molkv_bundle import OutputError, RequestError, contents
from molkv_export.atomic_folder import atomic_folder, check_output
from molkv_export.parity.figures import bisection_svg, draw_bisection, kl_svg
from molkv_export.parity.report import gate_in_words, verdict
from molkv_export.parity.validate import Report
from molkv_export.terminal import human_bytes

PAGE = "index.html"
DATA = "report.json"

_PLOT_FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Refuse before the work what cannot be drawn to.

    Raises:
        RequestError: The file is of another kind.
        OutputError: Its folder is not there.
    """
    if path.suffix not in _PLOT_FORMATS:
        raise RequestError(f"{path}: ends in {path.suffix or 'nothing'}, expected {' or '.join(_PLOT_FORMATS)}")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file to draw to")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: is not a folder, so {path.name} cannot be written there")


def check_report_folder(folder: Path) -> None:
    """Refuse before the work what cannot be written to: only a folder that holds a report is ever replaced.

    Raises:
        OutputError: Something else is there.
    """
    check_output(folder, is_ours=_is_report, force=True)


def write_plot(report: Report, path: Path) -> None:
    """Draw the errors by layer; of a report without them there is nothing to draw.

    Raises:
        OutputError: The file cannot be written.
    """
    if report.bisection is None:
        return
    try:
        draw_bisection(report.bisection, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def write_report(report: Report, folder: Path) -> None:
    """Write a report as a folder with index.html and report.json; an old report there is replaced.

    Raises:
        OutputError: The folder cannot be written, or holds something else.
    """
    with atomic_folder(folder, is_ours=_is_report, force=True) as new:
        (new / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        (new / PAGE).write_text(html(report), encoding="utf-8")


def html(report: Report) -> str:
    """Give a report as a page that needs no other file."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("molkv_export.parity"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(bytes=human_bytes, percent=lambda share: f"{share:.2%}", short=lambda x: f"{x:.1e}")
    quality = report.quality.metrics
    return templates.get_template("report.html").render(
        report=report,
        quality=quality,
        passed=not report.failures,
        verdict=verdict(report),
        gate=gate_in_words(report),
        references=list(dict.fromkeys(item.reference for item in report.comparisons)),
        kl_figure=Markup(kl_svg(report.kl, quality.kl_mean, report.gate.kl_mean)),
        layer_figures=[Markup(drawing) for drawing in bisection_svg(report.bisection)] if report.bisection else [],
    )


def _is_report(folder: Path) -> bool:
    return {path.name for path in contents(folder)} == {PAGE, DATA}
