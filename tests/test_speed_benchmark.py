"""`make bench-speed`: the order of turns, the ratios of rounds, and who takes part in what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.speed.contest import Result, Spread, Task, contest
from benchmarks.speed.parts import BATCH, DECODE, PREFILL, contests

# A contender that appends its name and task to a file, and answers with the number of its calls as the seconds.
PROGRAM = """
import json, sys
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    with open(sys.argv[1], "a") as file:
        file.write(f"{sys.argv[2]}{json.loads(line)['length']} ")
    print(json.dumps({"seconds": number, "rss": 10 * number}), flush=True)
"""


def test_turns_change_their_order_and_the_first_round_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {name: (sys.executable, "-c", PROGRAM, log, name) for name in "ab"}
    short, long = Task("decode", 1), Task("decode", 2)
    found = contest(commands, {short: ["a", "b"], long: ["b"]}, 2)
    assert log.read_text().split() == ["b2", "b1", "a1", "a1", "b1", "b2", "b2", "b1", "a1"]
    assert found["a", short] == Result([1, 2], [10, 20])
    assert found["b", short] == Result([2, 5], [20, 50])
    assert found["b", long] == Result([3, 4], [30, 40])


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() -> None:
    own, other = Result([1, 2, 4, 2], []), Result([3, 8, 4, 14], [])
    assert own.ratio(other) == Spread(median=3.5, lower_quartile=2.5, upper_quartile=4.75)  # of 3, 4, 1 and 7
    assert own.ratio(other, work=8) == Spread(28, 20, 38)
    assert Spread.of([3]) == Spread(3, 3, 3)


def test_only_what_was_chosen_is_measured() -> None:
    assert contests("prefill", ["int8"], [], []) == {"prefill int8": {PREFILL: ["dense int8", "molkv int8"]}}
    assert contests("batch", ["int4"], ["mole", "eager"], ["baseline-dense int4"]) == {
        "batch int4": {DECODE: ["molkv int4"], BATCH: ["molkv int4"]}
    }


def test_other_programs_run_the_main_task_in_the_dtypes_that_they_have() -> None:
    found = contests("decode", ["int8", "int4"], ["genai", "naive"], ["baseline-dense int8", "baseline-molkv float32"])
    assert found["decode int8"][DECODE] == ["dense int8", "molkv int8", "baseline-dense int8"]
    assert found["decode int4"][DECODE] == ["dense int4", "molkv int4", "genai int4"]
    assert found["decode naive"] == {DECODE: ["molkv int8", "molkv int4", "naive"]}
    for dtype in ("int8", "int4"):
        for task in (Task("decode", 128), Task("decode", 1024)):
            assert found[f"decode {dtype}"][task] == [f"dense {dtype}", f"molkv {dtype}"]


@pytest.mark.parametrize("part", ["decode", "prefill", "memory", "batch"])
def test_the_contenders_of_a_ratio_meet_in_one_contest(part: str) -> None:
    found = contests(part, ["float32"], ["mole", "ram", "genai", "eager", "naive"], [])
    assert len(found) == (2 if part in ("decode", "prefill") else 1)
    assert all("molkv float32" in names for tasks in found.values() for names in tasks.values())
