"""Results of a benchmark, and functions that print them as tables, in the terminal or in Markdown."""

from __future__ import annotations

from typing import Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from molkv_export.terminal import human_bytes, print_line

Storage = Literal["warm", "cold"]

_SHARES = ("gather", "graph", "sample", "other")  # in percent
_PREFILL = ("prompt", "tok/s", "first token", *_SHARES, "read")
_DECODE = ("context", "batch", "tok/s", "p50", "p95", "p99", *_SHARES, "read", "limit")


class Shares(msgspec.Struct, frozen=True):
    """Share of each part in the measured time; the shares sum to 1."""

    gather: float  # waiting for records
    graph: float  # running the graph
    sampling: float  # choosing tokens
    other: float  # decoding records, the expert window, bookkeeping


class Prefill(msgspec.Struct, frozen=True):
    """Measurements of a prefill, up to the first new token; medians of all runs."""

    prompt: int  # tokens
    storage: Storage
    seconds: float  # time to first token
    tokens_per_second: float
    shares: Shares
    bytes_read: int


class Decode(msgspec.Struct, frozen=True):
    """Measurements of decode steps after a prompt; the last step fills the context."""

    context: int  # tokens after the last step
    batch: int  # sequences decoded together
    storage: Storage
    tokens_per_second: float  # all sequences together
    p50: float  # seconds per step
    p95: float
    p99: float
    shares: Shares
    bytes_read: int  # per step
    bandwidth_share: float  # speed, divided by the speed that the memory bandwidth allows; see `BenchReport.bandwidth`


class BenchReport(msgspec.Struct, frozen=True):
    """All measurements of a benchmark."""

    bundle: str
    dense_dtype: str
    experts_dtype: str
    profile: str
    provider: str
    placements: str  # number of nodes on each provider, in words
    threads: int
    runs: int  # number of runs of each measurement
    bandwidth: float  # bytes per second; a step reads weights, KV cache and window at least once
    weights: int  # bytes of the dense weights in RAM
    peak_rss: int  # peak resident size of this process, in bytes
    rss_before: int  # peak resident size before the bundle was loaded, in bytes
    prefill: list[Prefill]
    decode: list[Decode]


def facts(report: BenchReport) -> list[str]:
    """Return facts about all measurements, and explanations of the columns, one line each."""
    return [
        f"{report.bundle}: dense {report.dense_dtype}, experts {report.experts_dtype}; "
        f"profile {report.profile}, provider {report.provider} ({report.placements}), {report.threads} threads; "
        f"medians of {report.runs} runs",
        f"dense weights {human_bytes(report.weights)}; peak RSS {human_bytes(report.peak_rss)} "
        f"({human_bytes(report.rss_before)} before the bundle was loaded)",
        f"memory bandwidth {report.bandwidth / 1e9:.1f} GB/s; limit: percent of the speed that this bandwidth allows "
        "if each step reads weights, KV cache and expert window once",
        "gather, graph, sample, other: percent of the time; p50, p95, p99: time per step in ms",
        "warm: the records were read before; cold: the store was dropped from the page cache",
    ]


def print_bench(report: BenchReport, console: Console) -> None:
    """Print the facts and the tables."""
    for line in facts(report):
        print_line(console, line)
    for title, columns, rows in _tables(report):
        table = Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE, show_edge=False, padding=0)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(report: BenchReport) -> str:
    """Return the facts and the tables as Markdown."""
    lines = [f"- {line}" for line in facts(report)]
    for title, columns, rows in _tables(report):
        lines += ["", f"**{title}**", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _tables(report: BenchReport) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    found = []
    for storage in dict.fromkeys(one.storage for one in report.prefill):
        prefill = [_prefill_row(one) for one in report.prefill if one.storage == storage]
        decode = [_decode_row(one) for one in report.decode if one.storage == storage]
        found += [(f"prefill, {storage}", _PREFILL, prefill), (f"decode, {storage}", _DECODE, decode)]
    return found


def _prefill_row(one: Prefill) -> list[str]:
    first = f"{1e3 * one.seconds:.0f} ms"
    return [str(one.prompt), f"{one.tokens_per_second:.0f}", first, *_shares(one.shares), human_bytes(one.bytes_read)]


def _decode_row(one: Decode) -> list[str]:
    times = [f"{1e3 * seconds:.2f}" for seconds in (one.p50, one.p95, one.p99)]
    rate, share = f"{one.tokens_per_second:.4g}", f"{100 * one.bandwidth_share:.0f}"
    return [
        *(str(one.context), str(one.batch), rate, *times),
        *(*_shares(one.shares), human_bytes(one.bytes_read), share),
    ]


def _shares(shares: Shares) -> list[str]:
    return [f"{100 * share:.1f}" for share in (shares.gather, shares.graph, shares.sampling, shares.other)]
