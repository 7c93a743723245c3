"""The report page: one complete file that is safe to open."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from molkv_bundle import OutputError, RequestError
from molkv_export import Report, validate
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.metrics import Candidate, WorstPositions
from molkv_export.parity.report import check_plot, check_report_folder, html, write_plot, write_report
from tests.models import STDLIB_MINI

pytestmark = pytest.mark.slow

_SCOPE = Scope(sequences=1, continuations=2, new_tokens=8)


@pytest.fixture(scope="module")
def report(stdlib_mini_bundle: Path) -> Report:
    return validate(stdlib_mini_bundle, STDLIB_MINI, scope=_SCOPE, with_bisection=True)


class _Balance(HTMLParser):
    """Parser that checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_runs_no_code(report: Report) -> None:
    page = html(report)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>', "", page)
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", without_names)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []


def test_the_page_begins_with_the_verdict(report: Report) -> None:
    page = html(report)
    order = ["✓ PASS", "All phases", "Error by layer", "KL divergence of all positions", "Worst positions"]
    places = [page.index(part) for part in [*order, "Sizes", "Environment"]]
    assert places == sorted(places)
    for comparison in report.comparisons:
        assert comparison.phase in page
    assert "all 46 compared, 1328384 numbers, equal to the source" in page
    assert page.count('<article class="position">') == len(report.worst) == 8
    assert page.count("<svg") == 3
    assert "var(--series-1)" in page
    assert "#0102" not in page  # placeholder colours are replaced by the page's variables


def test_a_failed_page_begins_with_the_failures(report: Report) -> None:
    comparison = msgspec.structs.replace(report.comparisons[2], failure="max abs 3 is above 0.0001")
    assert report.bisection is not None
    bisection = msgspec.structs.replace(
        report.bisection, culprit="layer 2, experts", second_opinion="the graph is wrong"
    )
    page = html(msgspec.structs.replace(report, comparisons=[*report.comparisons, comparison], bisection=bisection))
    head = page[: page.index("All phases")]
    for part in ("✗ FAIL", "max abs 3 is above 0.0001", "bisection: layer 2, experts", "the graph is wrong"):
        assert part in head


def test_markup_in_texts_is_escaped(report: Report) -> None:
    hostile = "<script>alert(1)</script>&\"'"
    worst = msgspec.structs.replace(
        report.worst[0], before=hostile, follows=hostile, reference=[Candidate(hostile, 0.5)], candidate=[]
    )
    page = html(msgspec.structs.replace(report, worst=[worst], bundle=hostile, text=hostile))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_page_and_json_are_written_together_and_replaced(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "report"
    for _ in range(2):
        check_report_folder(folder)
        write_report(report, folder)
        (folder / ".DS_Store").write_text("x")
    write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.json"]
    assert msgspec.json.decode((folder / "report.json").read_bytes(), type=Report) == report
    assert json.loads((folder / "report.json").read_text())["worst"][0]["reference"][0]["probability"] > 0


def test_a_folder_of_other_files_is_refused_before_the_validation(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds files that molkv-export did not write"):
        check_report_folder(tmp_path)
    with pytest.raises(OutputError, match="is not a folder"):
        check_report_folder(tmp_path / "thesis.tex")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_drawn(suffix: str, report: Report, tmp_path: Path) -> None:
    path = tmp_path / f"layers.{suffix}"
    check_plot(path)
    write_plot(report, path)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_an_invalid_plot_path_is_refused_before_the_validation(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"plot: found .*layers.doc, expected a file name that ends in .png or .svg"):
        check_plot(tmp_path / "layers.doc")
    with pytest.raises(OutputError, match="is not a folder"):
        check_plot(tmp_path / "none" / "layers.png")


def test_a_comparison_of_two_bundles_has_a_page_too(bundles: Callable[..., Path]) -> None:
    report = validate(bundles("molkv", "int8"), against=bundles("molkv"), scope=_SCOPE)
    page = html(report)
    assert "other bundle" in page
    assert "Error by layer" not in page
    assert "there was no real text" in page


def test_a_position_with_nan_is_the_worst() -> None:
    ids, logits = np.arange(30), np.zeros((30, 7), np.float32)
    kl = np.linspace(0.1, 0.2, 30)
    kl[20] = np.nan
    worst = WorstPositions()
    worst.add(0, ids, logits, logits, kl)
    assert [item.position for item in worst.result(str)][:2] == [20, 29]


@pytest.mark.parametrize("error", [float("inf"), 0.0])
def test_infinite_and_zero_errors_are_drawn(error: float, report: Report, tmp_path: Path) -> None:
    assert report.bisection is not None
    phases = [
        msgspec.structs.replace(phase, errors=[msgspec.structs.replace(e, error=error) for e in phase.errors])
        for phase in report.bisection.phases
    ]
    bisection = msgspec.structs.replace(report.bisection, phases=phases)
    write_plot(msgspec.structs.replace(report, bisection=bisection), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 1000
