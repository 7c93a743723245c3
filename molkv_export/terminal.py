"""Print texts, sizes, progress bars and log messages in a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_LOGGERS = ("molkv_bundle", "molkv_runtime", "molkv_export")
_LOG = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP asks the program to end. `chat` goes on after SIGINT (Ctrl-C), but not after these signals."""


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return the console of a command. It prints strings without markup and does not wrap lines."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line without markup and without wrapping, on any console."""
    console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def log_to(console: Console, level: int) -> Iterator[None]:
    """Print the log messages of this project on a console, from the given level of `logging` upwards."""
    handler = _ConsoleHandler(console)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, old_level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate


class _ConsoleHandler(logging.Handler):
    """A log handler that prints on a console, above its progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self._console, self.format(record))


@contextmanager
def timed(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log the duration of a `with` block in seconds, at level INFO."""
    start = time.perf_counter()
    yield
    logger.info("%s: %.2f s", what, time.perf_counter() - start)


@contextmanager
def status(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show the current step of a command. Yield a function that shows and logs the next step."""
    with console.status(Text(text)) as shown:

        def show(step: str) -> None:
            _LOG.info("%s", step)
            shown.update(Text(step))

        yield show


def human_bytes(count: int) -> str:
    """Return a number of bytes as text with a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class Bars(Progress):
    """Progress bars that appear with the first task. Before that, nothing is printed, not even an empty line."""

    def __enter__(self) -> Bars:
        return self

    def add_task(self, description: str, *arguments: Any, **fields: Any) -> TaskID:
        """Add a bar; arguments as in `Progress`."""
        self.start()
        return super().add_task(description, *arguments, **fields)

    def stop(self) -> None:
        """Stop the display if it was started."""
        if self.live.is_started:
            super().stop()


def byte_progress(console: Console | None) -> Bars:
    """Return progress bars for bytes, with rate and remaining time. Without a console, nothing is shown."""
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
    )


def counter(progress: Progress, description: str) -> Callable[[int, int], None]:
    """Return a function (bytes since its last call, total bytes) that creates a progress bar and advances it."""
    tasks: list[TaskID] = []

    def advance(count: int, total: int) -> None:
        if not tasks:
            tasks.append(progress.add_task(description, total=total))
        progress.update(tasks[0], advance=count)

    return advance


@contextmanager
def download_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress bars of downloads. Yield a function (file, bytes since its last call, bytes of the file).

    After the block, the function shows nothing.
    """
    tasks: dict[str, TaskID] = {}
    is_open = True
    with byte_progress(console) as progress:

        def advance(name: str, count: int, size: int) -> None:
            if is_open and name not in tasks:
                tasks[name] = progress.add_task(f"downloading {name}", total=size)
            if is_open:
                progress.update(tasks[name], advance=count)

        try:
            yield advance
        finally:
            is_open = False
