"""The benchmark measures time and bytes correctly, and refuses impossible measurements before it starts."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from molkv_bundle import OpenShard, RequestError
from molkv_export.bench.machine import can_drop_from_page_cache, memory_bandwidth
from molkv_export.bench.measure import bench
from molkv_export.bench.report import BenchReport
from molkv_export.commands import cli
from molkv_runtime import BoundCall, Target

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molkv_export.bench.measure.memory_bandwidth", lambda _threads: 1e9)


@pytest.mark.parametrize("name", ["molkv", "mole", "dense"])
def test_the_report_has_every_requested_measurement(name: str, bundles: Callable[..., Path]) -> None:
    report = bench(bundles(name), prompts=[3, 40], contexts=[20, 48], batches=[1, 3], steps=7, runs=2)
    assert [(one.storage, one.prompt) for one in report.prefill] == [
        (storage, prompt) for storage in ("warm", "cold") for prompt in (3, 40)
    ]
    assert [(one.context, one.batch) for one in report.decode] == [(20, 1), (20, 3), (48, 1), (48, 3)] * 2
    for one in report.prefill:
        assert one.tokens_per_second == pytest.approx(one.prompt / one.seconds)
        assert sum(msgspec.structs.astuple(one.shares)) == pytest.approx(1)
    for step in report.decode:
        assert 0 < step.p50 <= step.p95 <= step.p99
        assert step.bytes_read <= step.batch * _stride(report)
        assert step.bandwidth_share > 0
    assert report.peak_rss >= report.rss_before > 0


def _stride(report: BenchReport) -> int:
    manifest: dict[str, Any] = msgspec.json.decode((Path(report.bundle) / "manifest.json").read_bytes())
    stride: int = manifest["tables"]["experts"]["stride"]
    return stride


def test_time_is_assigned_to_the_part_that_spends_it(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # the times are not real, because other processes take time, too
    spent = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: spent[0] + 1e-6 * next(clock))

    def slowly(original: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            spent[0] += seconds
            return original(*arguments)

        return call

    monkeypatch.setattr(BoundCall, "run", slowly(BoundCall.run, 0.15))
    monkeypatch.setattr(OpenShard, "read", slowly(OpenShard.read, 0.05))
    report = bench(bundles("molkv"), prompts=[1], contexts=[8], steps=4, runs=1, storage=["warm"])
    for shares in (report.prefill[0].shares, report.decode[0].shares):
        assert shares.graph == pytest.approx(0.75, abs=0.001)
        assert shares.gather == pytest.approx(0.25, abs=0.001)
    assert report.decode[0].p50 >= 0.2


def test_bytes_read_count_each_distinct_id_once(bundles: Callable[..., Path]) -> None:
    report = bench(bundles("molkv"), prompts=[45], contexts=[48], steps=5, runs=1, storage=["warm"])
    ids = np.random.default_rng(0).integers(0, 97, 45)
    assert report.prefill[0].bytes_read == len(np.unique(ids)) * _stride(report)
    assert report.decode[0].bytes_read == _stride(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [49]}, "prompts: found 49, expected 1 to 48"),
        ({"prompts": [0]}, "prompts: found 0, expected 1 to 48"),
        ({"contexts": [20, 1000]}, "contexts: found 1000, expected 2 to 48"),
        ({"contexts": [1]}, "contexts: found 1, expected 2 to 48"),
        ({"batches": [0]}, "batches: found 0, expected 1 or more"),
        ({"batches": [10**9]}, r"1000000000 sequences of 48 tokens need [\d,]+ MiB of RAM"),
        ({"steps": 0}, "steps: found 0, expected 1 or more"),
        ({"runs": 0}, "runs: found 0, expected 1 or more"),
        ({"target": Target(threads=10_000)}, "threads: found 10000, expected 1 to"),
        ({"target": Target(threads=0)}, "threads: found 0, expected 1 to"),
    ],
)
def test_impossible_measurements_are_refused_before_work_starts(
    options: dict[str, Any], message: str, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundCall, "run", lambda _self: pytest.fail("work has started"))
    with pytest.raises(RequestError, match=message):
        bench(bundles("molkv"), **options)


def test_the_command_prints_tables_or_json_or_markdown(bundles: Callable[..., Path]) -> None:
    options = ["--prompts", "8,16", "--contexts", "16", "--steps", "3", "--runs", "1", "--storage", "warm"]
    shown = {}
    for form in ("--quiet", "--json", "--markdown"):
        done = CliRunner().invoke(cli, ["bench", str(bundles("molkv")), *options, form], terminal_width=80)
        assert done.exit_code == 0, done.output
        shown[form] = done.stdout
    assert "decode, warm" in shown["--quiet"]
    assert "…" not in shown["--quiet"]  # no column is cut
    report = msgspec.json.decode(shown["--json"].encode(), type=BenchReport)
    assert [one.prompt for one in report.prefill] == [8, 16]
    assert "**decode, warm**" in shown["--markdown"]
    assert "| 16 | 1 |" in shown["--markdown"]
    assert {line.count("|") for line in shown["--markdown"].splitlines() if line.startswith("| 16 | 1 |")} == {13}


def test_storage_is_warm_where_the_page_cache_cannot_be_dropped(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(os, "posix_fadvise")
        assert not can_drop_from_page_cache()
    for module in ("molkv_export.bench.measure", "molkv_export.commands.bench"):
        monkeypatch.setattr(f"{module}.can_drop_from_page_cache", lambda: False)
    options = ["--prompts", "8", "--contexts", "16", "--steps", "3", "--runs", "1", "--json"]
    done = CliRunner().invoke(cli, ["bench", str(bundles("molkv")), *options])
    assert done.exit_code == 0, done.output
    assert [one["storage"] for one in msgspec.json.decode(done.stdout)["prefill"]] == ["warm"]
    assert done.stderr.startswith("note: measures warm storage only, because this system cannot drop files from its")
    for storage in ("both", "cold"):
        done = CliRunner().invoke(cli, ["bench", str(bundles("molkv")), *options, "--storage", storage])
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"'--storage': found {storage}, expected warm" in done.stderr


def test_json_and_markdown_together_are_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tmp_path), "--json", "--markdown"])
    assert done.exit_code == 2
    assert "found --json and --markdown, expected at most one of them" in done.stderr


@pytest.mark.parametrize("wrong", ["", "a", "1,", "1;2", "-1", "1e3"])
def test_an_invalid_list_of_numbers_is_refused(wrong: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tmp_path), f"--prompts={wrong}"])
    assert done.exit_code == 2
    assert "expected a list of numbers such as 64,256" in done.output


def test_the_memory_bandwidth_is_measured() -> None:
    assert memory_bandwidth(os.cpu_count() or 1) > 1e8


def test_peak_memory_excludes_the_parent_process() -> None:
    script = """
import numpy as np
from molkv_export.bench.machine import peak_rss
before = peak_rss()
np.ones(300_000_000, np.uint8)
print(before, peak_rss())
"""
    large = np.ones(600_000_000, np.uint8)  # in the parent process
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < large.nbytes / 2
    assert 290_000_000 < after - before < 400_000_000
