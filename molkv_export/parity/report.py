"""A validation report for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from molkv_export.parity.gates import MAX_ABS_ROUNDING, QUALITY_GATES
from molkv_export.parity.validate import ROUNDED, TRAINED, Report

_NUMBERS = ("tokens", "max abs", "rel. L2", "KL mean", "KL max", "top-1")


def print_report(report: Report, console: Console) -> None:
    """Print the table, the verdict and every failure; 80 columns are enough."""
    gate = QUALITY_GATES[report.experts_dtype]
    console.print(f"{report.bundle} (experts {report.experts_dtype}) against {report.checkpoint}", markup=False)
    console.print(f"text: {report.text}", markup=False)
    console.print(_table(report))
    quality = next(item.metrics for item in report.comparisons if item.reference == TRAINED)
    ratio = quality.perplexity_candidate / quality.perplexity_reference
    console.print(
        f"perplexity: source as trained {quality.perplexity_reference:.4f}, "
        f"bundle {quality.perplexity_candidate:.4f} (x {ratio:.6f})"
    )
    console.print(f"records: all {report.records.records} compared, {report.records.failure or 'equal to the source'}")
    greedy = report.greedy
    console.print(
        f"greedy text: {greedy.identical} of {greedy.continuations} continuations "
        f"of {greedy.tokens_each} tokens identical"
    )
    console.print(f"gates, {TRAINED}: mean KL {gate.kl_mean:g}, perplexity x {gate.perplexity_ratio:g}")
    console.print(f"gates, {ROUNDED}: max abs {MAX_ABS_ROUNDING:g}, records equal, greedy text identical")
    for failure in report.failures:
        console.print(f"FAIL {failure}", style="bold red", markup=False)
    if not report.failures:
        console.print("PASS the bundle is the model that was trained", style="bold green")


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("logits against source", no_wrap=True)
    for column in _NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for reference in (TRAINED, ROUNDED):
        table.add_row(f"[bold]{reference}")
        for item in report.comparisons:
            if item.reference == reference:
                metrics = item.metrics
                numbers = (metrics.max_abs, metrics.relative_l2, metrics.kl_mean, metrics.kl_max)
                table.add_row(
                    f"  {item.phase}",
                    str(metrics.positions),
                    *(f"{number:.1e}" for number in numbers),
                    f"{metrics.top1_agreement:.2%}",
                    "FAIL" if item.failure else "ok",
                )
    return table
