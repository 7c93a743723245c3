"""How sizes and progress look in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text


def console(*, stderr: bool = False) -> Console:
    """Make the console of a command: strings are shown as they are, and lines are as long as they are."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line with names in it, on any console: nothing in it is markup, and it is not wrapped."""
    console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error what is being done; the function that is given shows another text."""
    with console(stderr=True).status(Text(text)) as shown:
        yield lambda text: shown.update(Text(text))


def human_bytes(count: int) -> str:
    """Write a number of bytes with a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def byte_progress(console: Console | None) -> Progress:
    """Make a progress bar that counts bytes, with rate and remaining time; without a console it shows nothing."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
    )


def counter(progress: Progress, description: str) -> Callable[[int, int], None]:
    """Make a function that moves a new bar on, told how many bytes were done since its last call, and of how many."""
    task = progress.add_task(description, visible=False)  # until there is something to show
    return lambda count, total: progress.update(task, total=total, advance=count, visible=True)
