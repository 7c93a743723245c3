"""Contenders in separate processes. They take turns, so that other load on the machine affects all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

Command = Sequence[str | Path]


class Task(NamedTuple):
    """A task to measure."""

    what: str  # "prefill" or "decode"
    length: int  # length of the prompt, or of the context at the last step
    batch: int = 1

    @property
    def title(self) -> str:
        """Title in tables."""
        at = f"prefill {self.length:,}" if self.what == "prefill" else f"decode at {self.length:,}"
        return at if self.batch == 1 else f"{at}, {self.batch} sequences"


class Spread(NamedTuple):
    """The median and the quartiles of some numbers."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return the spread of one or more numbers."""
        low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)


class Result(NamedTuple):
    """What was measured of a contender for a task, one value for each round."""

    seconds: list[float]
    rss: list[float]  # peak of the resident set until then, in bytes

    def ratio(self, other: Result, work: float = 1) -> Spread:
        """Return the speed of this contender divided by the speed of another, from the ratios of all rounds.

        Args:
            other: A result of the same contest.
            work: How many times the work of the other task this task is.
        """
        return Spread.of([work * b / a for a, b in zip(self.seconds, other.seconds, strict=True)])

    @property
    def median(self) -> float:
        """Median seconds."""
        return Spread.of(self.seconds).median


Key = tuple[str, Task]  # a contender and its task
Found = dict[Key, Result]


class _Contender:
    def __init__(self, command: Command) -> None:
        self._command = [str(part) for part in command]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes

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


def contest(commands: Mapping[str, Command], tasks: Mapping[Task, Sequence[str]], rounds: int) -> Found:
    """Run tasks with contenders that take turns, and return the results by contender and task.

    Args:
        commands: The command that starts each contender, by name.
        tasks: The names of the contenders for each task.
        rounds: The number of runs of each task, after one run for warm-up.
    """
    turns = [(name, task) for task, names in tasks.items() for name in names]
    found: Found = {turn: Result([], []) for turn in turns}
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(_Contender(command)) for name, command in commands.items()}
        for number in range(rounds + 1):
            for name, task in turns if number % 2 else reversed(turns):
                answer = contenders[name].ask(task)
                if number:
                    found[name, task].seconds.append(answer["seconds"])
                    found[name, task].rss.append(answer["rss"])
    print(f"done: {', '.join(commands)}: {'; '.join(task.title for task in tasks)}", file=sys.stderr, flush=True)
    return found


def contest_of_new_processes(
    commands: Mapping[str, Command], tasks: Mapping[Task, Sequence[str]], rounds: int
) -> Found:
    """Run tasks as `contest` does, with new processes in each round: for peaks of memory."""
    found = [contest(commands, tasks, 1) for _ in range(rounds)]
    return {
        key: Result([each[key].seconds[0] for each in found], [each[key].rss[0] for each in found]) for key in found[0]
    }
