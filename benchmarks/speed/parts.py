"""The parts of the benchmark: which contenders run which tasks."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from benchmarks.speed.contenders import GENAI
from benchmarks.speed.contest import Task

PREFILL = Task("prefill", 1024)
DECODE = Task("decode", 512)
CONTEXTS = (DECODE, Task("decode", 128), Task("decode", 1024))
BATCH = Task("decode", 512, 8)

PARTS = ("decode", "prefill", "memory", "batch")
OTHERS = ("mole", "ram", "genai", "eager", "naive")  # contenders beside MoLKV and the dense floor

Tasks = Mapping[Task, Sequence[str]]  # the names of the contenders for each task


def contests(part: str, dtypes: Sequence[str], others: Sequence[str], baselines: Container[str]) -> dict[str, Tasks]:
    """Return the contests of a part by name: for each task the names of its contenders (`contenders.py`).

    Args:
        part: One of `PARTS`.
        dtypes: Dtypes of the dense weights.
        others: The chosen ones of `OTHERS`.
        baselines: The names of all contenders that the baseline has.
    """
    if part in ("memory", "batch"):
        tasks = (PREFILL, DECODE) if part == "memory" else (DECODE, BATCH)
        return {f"{part} {dtype}": {task: [f"molkv {dtype}"] for task in tasks} for dtype in dtypes}
    main, *contexts = CONTEXTS if part == "decode" else (PREFILL,)
    found: dict[str, Tasks] = {}
    for dtype in dtypes:
        drivers = [
            f"{kind} {dtype}" for kind in ("dense", "molkv", *(kind for kind in ("mole", "ram") if kind in others))
        ]
        rivals = [name for name in (f"baseline-dense {dtype}", f"baseline-molkv {dtype}") if name in baselines]
        if "genai" in others and dtype in GENAI:
            rivals.append(f"genai {dtype}")
        found[f"{part} {dtype}"] = {main: [*drivers, *rivals], **dict.fromkeys(contexts, drivers)}
    if slow := [kind for kind in ("eager", "naive") if kind in others]:
        found[f"{part} {' and '.join(slow)}"] = {main: [*(f"molkv {dtype}" for dtype in dtypes), *slow]}
    return found


def contestants(tasks: Tasks) -> list[str]:
    """Return the names of all contenders of a contest."""
    return list(dict.fromkeys(name for names in tasks.values() for name in names))
