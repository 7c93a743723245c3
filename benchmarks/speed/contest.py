"""Contenders in separate processes. They take turns, so that other load on the machine affects all of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

MODULE = (sys.executable, "-m", "benchmarks.speed.process")


class Task(NamedTuple):
    """A task to measure."""

    what: str  # "prefill" or "decode"
    length: int  # length of the prompt, or of the context at the last step
    batch: int = 1


class Result(NamedTuple):
    """The times of a contender for a task."""

    seconds: list[float]  # one for each run
    rss: float  # peak of the resident set, in bytes

    def ratio(self, other: Result) -> float:
        """Return the speed of this contender, divided by the speed of another: the median of the ratios of all runs."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


class _Contender:
    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = [str(part) for part in command]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, task: Task | None) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if task is not None:
            self._process.stdin.write(json.dumps(task._asdict()) + "\n")
            self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if task is None and line == "ready\n":
                return {}
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise RuntimeError(f"the process ended: {' '.join(self._command)}")


def contest(
    commands: Mapping[str, Sequence[str | Path]], tasks: Mapping[Task, Sequence[str]], runs: int
) -> dict[tuple[str, Task], Result]:
    """Run tasks with contenders that take turns, and return the results by contender and task.

    Args:
        commands: The command that starts each contender, by name.
        tasks: The names of the contenders for each task.
        runs: The number of runs of each task, after one run for warm-up.
    """
    found: dict[tuple[str, Task], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(_Contender(command)) for name, command in commands.items()}
        for task, names in tasks.items():
            for run in range(runs + 1):
                for name in names if run % 2 else reversed(names):
                    answer = contenders[name].ask(task)
                    if run:
                        found.setdefault((name, task), []).append(answer)
            print(f"done: {', '.join(names)}: {task}", file=sys.stderr, flush=True)
    return {
        key: Result([answer["seconds"] for answer in answers], answers[-1]["rss"]) for key, answers in found.items()
    }
