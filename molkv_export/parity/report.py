"""Print a validation report in the terminal, or write it as a folder with an HTML page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from molkv_bundle import ArgumentError, OutputError, contents
from molkv_export.atomic_folder import atomic_folder, check_output
from molkv_export.parity.expected import EXPECTED
from molkv_export.parity.figures import bisection_svg, draw_bisection, kl_svg
from molkv_export.parity.validate import ROUNDED, Report
from molkv_export.terminal import human_bytes, print_line

_NUMBERS = ("\ntokens", "max\nabs", "rel.\nL2", "KL\nmean", "KL\np99", "KL\nmax", "top-1\n%", "top-5\n%")

PAGE = "index.html"
DATA = "report.json"
_PLOT_FORMATS = (".png", ".svg")


def print_report(report: Report, console: Console) -> None:
    """Print the table, the verdict and every failure, at most 80 columns wide."""
    line = partial(print_line, console)
    line(f"{report.bundle} (dense {report.dense_dtype}, experts {report.experts_dtype}) against {report.reference}")
    if report.reference_note:
        line(f"reference: {report.reference_note}")
    line(f"profile {report.profile}, provider {report.provider}" + (report.placements and f": {report.placements}"))
    line(f"text: {report.text}")
    console.print(_table(report))
    for text in facts(report):
        line(text)
    for failure in report.failures:
        line(f"FAIL {failure}", "bold red")
    if not report.failures:
        line(f"PASS {verdict(report)}", "bold green")


def verdict(report: Report) -> str:
    """Return a sentence that says what a pass means for this comparison."""
    if report.quality.reference == EXPECTED:
        within = "" if report.rounding_limit is not None else ", within the limits for rounding"
        return f"the bundle agrees with your own code{within}"
    if report.records is None:
        return "the bundles agree" if report.gate_applies else "compared without a gate, because there was no real text"
    if report.gate_applies:
        return "the bundle matches the trained model"
    return "the bundle matches its rounded source; the loss by rounding was not judged, because there was no real text"


def facts(report: Report) -> list[str]:
    """Return the results that are not in the table, one line each."""
    found = []
    if (perplexity := report.quality.metrics.perplexity) is not None:
        found.append(
            f"perplexity: reference {perplexity.reference:.4f} ± {perplexity.reference_error:.2g}, "
            f"bundle {perplexity.candidate:.4f} ± {perplexity.candidate_error:.2g} "
            f"(x {perplexity.ratio:.6f} ± {perplexity.ratio_error:.1g})"
        )
    if weights := report.weights:
        numbers = f"all {weights.weights} compared, {weights.numbers} numbers"
        found.append(f"weights: {weights.failure or f'{numbers}, equal to the source'}")
    if records := report.records:
        how_many = f"all {records.of}" if records.records == records.of else f"{records.records} of {records.of}"
        found.append(f"records: {how_many} compared, {records.failure or 'equal to the source'}")
    for greedy in report.greedy:
        ties = f", {greedy.ties} {'tie' if greedy.ties == 1 else 'ties'}" if greedy.ties else ""
        found.append(
            f"greedy text, {greedy.reference}: {greedy.identical} of {greedy.continuations} identical, "
            f"{greedy.mean_length:.1f} of {greedy.tokens_each} tokens on average{ties}"
        )
    if report.quality.reference == EXPECTED:
        found.append("greedy text: not compared, because there is no model to generate it")
    found.append(f"quality gate: {gate_in_words(report)}{'' if report.gate_applies else ' (not applied)'}")
    if report.quality.reference == EXPECTED:
        found.append(f"gate, {EXPECTED}: {_expected_gate(report.rounding_limit)}")
    if report.records is not None:
        found.append(
            f"gate, {ROUNDED}: max abs {report.rounding_limit:.2g}, weights and records equal, greedy text identical"
        )
    if (bisection := report.bisection) is not None:
        for phase in bisection.phases:
            worst = max(phase.errors, key=lambda error: error.error)
            found.append(f"layer by layer, {phase.phase}: largest relative error {worst.error:.1e} ({worst.name})")
        found.append(f"layer by layer: {bisection.culprit or f'all within {bisection.limit:g}'}")
        found += [bisection.second_opinion] if bisection.second_opinion else []
    return found


def _expected_gate(limit: float | None) -> str:
    if limit is not None:
        return f"max abs {limit:.2g}, because nothing is rounded"
    return "quality gate only; a small mistake can pass it, so also compare a float32 bundle with float32 logits once"


def gate_in_words(report: Report) -> str:
    """Return the limits of the quality gate in words."""
    gate = report.gate
    perplexity = f"perplexity x {gate.perplexity_ratio:g}, " if report.quality.metrics.perplexity else ""
    return f"KL mean {gate.kl_mean:g}, p99 {gate.kl_p99:g}, {perplexity}top-1 {gate.top1_agreement:.1%}"


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)
    table.add_column("\nlogits", no_wrap=True)
    for column in _NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for reference in dict.fromkeys(item.reference for item in report.comparisons):
        table.add_row(Text(reference, style="bold"))
        for item in report.comparisons:
            if item.reference == reference:
                m = item.metrics
                table.add_row(
                    Text(f" {item.phase}"),
                    str(m.positions),
                    *(f"{number:.0e}" for number in (m.max_abs, m.relative_l2, m.kl_mean, m.kl_p99, m.kl_max)),
                    *(f"{100 * share:.2f}" for share in (m.top1_agreement, m.top5_agreement)),
                    "FAIL" if item.failure else "ok",
                )
    return table


def check_plot(path: Path) -> None:
    """Check, before any other work, that a figure can be written to a path.

    Raises:
        ArgumentError: The file name does not end in .png or .svg.
        OutputError: The path is a folder, or its parent folder does not exist.
    """
    if path.suffix not in _PLOT_FORMATS:
        raise ArgumentError("plot", path, f"a file name that ends in {' or '.join(_PLOT_FORMATS)}")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name for the figure")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: is not a folder, so {path.name} cannot be written there")


def check_report_folder(folder: Path) -> None:
    """Check, before any other work, that a report can be written to a folder. Only an old report is replaced.

    Raises:
        OutputError: The path exists and is not a report.
    """
    check_output(folder, is_ours=_is_report, force=True)


def write_plot(report: Report, path: Path) -> None:
    """Draw the errors by layer to a file; do nothing if the report has no bisection.

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
    """Write a report as a folder with index.html and report.json. An old report is replaced.

    Raises:
        OutputError: The folder cannot be written, or exists and is not a report.
    """
    with atomic_folder(folder, is_ours=_is_report, force=True) as new:
        (new / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        (new / PAGE).write_text(html(report), encoding="utf-8")


def html(report: Report) -> str:
    """Return a report as an HTML page that needs no other file."""
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
