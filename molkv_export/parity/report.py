"""A validation report for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from molkv_export.parity.gates import MAX_ABS_ROUNDING, QUALITY_GATES
from molkv_export.parity.validate import Report


def print_report(report: Report, console: Console) -> None:
    """Print the verdict, the table and every failure."""
    table = Table(
        title=f"{report.bundle} (experts {report.experts_dtype}) against {report.checkpoint}", title_justify="left"
    )
    columns = (
        "phase",
        "source",
        "positions",
        "max abs",
        "rel. L2",
        "KL mean",
        "KL max",
        "top-1",
        "ppl source",
        "ppl bundle",
    )
    for column in (*columns, ""):
        table.add_column(column, justify="left" if column in ("phase", "source", "") else "right", no_wrap=True)
    for item in report.comparisons:
        metrics = item.metrics
        table.add_row(
            item.phase,
            item.reference,
            str(metrics.positions),
            f"{metrics.max_abs:.1e}",
            f"{metrics.relative_l2:.1e}",
            f"{metrics.kl_mean:.1e}",
            f"{metrics.kl_max:.1e}",
            f"{metrics.top1_agreement:.2%}",
            f"{metrics.perplexity_reference:.4f}",
            f"{metrics.perplexity_candidate:.4f}",
            "FAIL" if item.failure else "ok",
        )
    console.print(table)
    greedy = report.greedy
    console.print(f"text: {report.text}")
    console.print(
        f"greedy text: {greedy.identical} of {greedy.continuations} continuations "
        f"of {greedy.tokens_each} tokens identical"
    )
    gate = QUALITY_GATES[report.experts_dtype]
    console.print(
        f"gates: max abs {MAX_ABS_ROUNDING:g} against records rounded, greedy text identical; "
        f"against as trained: mean KL {gate.kl_mean:g}, perplexity x{gate.perplexity_ratio:g}"
    )
    for failure in report.failures:
        console.print(f"FAIL {failure}", style="bold red")
    if not report.failures:
        console.print("PASS the bundle is the model that was trained", style="bold green")
