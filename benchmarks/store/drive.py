"""Compare a driver whose memory limit is less than a tenth of the tables with a driver that has all tables in RAM."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.store.memory_cap import MemoryCap
from molkv_bundle import Bundle
from molkv_export.terminal import human_bytes

STEPS = 64
PROMPT = 512


class _Driver:
    """A driver in a separate process."""

    def __init__(self, bundle: Path, mode: str, cap: MemoryCap | None) -> None:
        command = [sys.executable, "-m", "benchmarks.store.driver_process", str(bundle), mode]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if cap is not None:
            cap.add(self._process.pid)  # before the process has loaded the bundle
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        if self._answers.readline() != "ready\n":
            raise RuntimeError(f"the driver did not start: {command}")

    def run(self, **order: Any) -> dict[str, float]:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the driver's process ended; the memory limit may be too low for a prompt")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        self._orders.close()
        self._process.wait()


def drive_benchmark(folder: Path, runs: int) -> str:
    """Run both drivers in turns, and return a table."""
    bundle = Bundle(folder)
    tables = sum(bundle.manifest.files[shard.file].size for shard in bundle.manifest.experts.shards)
    cap = MemoryCap("molkv-bench")
    capped, whole = _Driver(folder, "storage", cap), _Driver(folder, "ram", None)
    own = cap.usage
    room = tables // 12
    cap.limit(own + room)
    times: dict[str, list[dict[str, float]]] = {"cold": [], "warm": [], "ram": []}
    for run in range(runs + 1):
        order = {"seed": run, "prompt": PROMPT, "steps": STEPS}
        found = {
            "cold": capped.run(drop=True, **order),
            "warm": capped.run(drop=False, **order),
            "ram": whole.run(drop=False, **order),
        }
        for name, spent in found.items():
            if run:  # the first run is a warm-up
                times[name].append(spent)
    peak = cap.peak
    for driver in (capped, whole):
        driver.stop()
    cap.remove()
    lines = []
    for name, title in (("cold", "from storage, cold"), ("warm", "from storage, warm"), ("ram", "all tables in RAM")):
        decode = statistics.median(STEPS / spent["decode"] for spent in times[name])
        prefill = statistics.median(PROMPT / spent["prefill"] for spent in times[name])
        ratio = [
            statistics.median(r[kind] / t[kind] for t, r in zip(times[name], times["ram"], strict=True))
            for kind in ("decode", "prefill")
        ]
        lines.append(f"| {title} | {decode:.1f} | {ratio[0]:.3f} | {prefill:.0f} | {ratio[1]:.3f} |")
    return "\n".join(
        [
            f"Tables: {human_bytes(tables)}. After loading, the driver uses {human_bytes(own)}; a control group allows "
            f"{human_bytes(room)} more (1/12 of the tables), including page cache. Peak: {human_bytes(peak)}. "
            f"The table shows medians of {runs} runs with a prompt of {PROMPT} random token ids and {STEPS} steps; the "
            "drivers took turns.",
            "",
            "| | decode, tok/s | ratio to RAM | prefill, tok/s | ratio to RAM |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )
