"""The command line and other scripts in processes of their own, which start in milliseconds.

A new Python process takes seconds to import PyTorch and ONNX. A fork server imports them once. Each run is a fork of
it with its own arguments, environment, working directory and standard streams.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import runpy
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLI = ROOT / "cli.py"
_PATIENCE_SECONDS = 240
CTRL_C, CTRL_D = "\x03", "\x04"

# Tests that fork by themselves use this context, too, since a process has one fork server.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["pytest", "rich.progress", "molkv_export.exporter", "molkv_export.parity.validate", "molkv_export.commands"]
)


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    returncode: int  # -N: signal N ended it
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8 text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8 text."""
        return self.stderr_bytes.decode(errors="replace")


def run_cli(
    *arguments: str | Path,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    stdout: Path | None = None,
) -> Done:
    """Run `python cli.py ARGUMENTS`; the other arguments are those of `run_script`."""
    return run_script(CLI, *arguments, cwd=cwd, environment=environment, stdin=stdin, stdout=stdout)


def run_script(
    script: Path,
    *arguments: str | Path,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    stdout: Path | None = None,
) -> Done:
    """Run `python SCRIPT ARGUMENTS`.

    Args:
        script: A Python file.
        arguments: Arguments of the script.
        cwd: Working directory of the process.
        environment: Environment variables in addition to those of this process.
        stdin: Content of standard input.
        stdout: File that standard output is written to. `stdout_bytes` is then empty.

    Raises:
        subprocess.TimeoutExpired: The process does not end.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / "stdin", stdout or Path(name) / "stdout", Path(name) / "stderr"]
        streams[0].write_bytes(stdin)
        variables = {**os.environ, **(environment or {})}
        process = FORKSERVER.Process(target=_run, args=(command, cwd, variables, streams))
        process.start()
        process.join(_PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, _PATIENCE_SECONDS)
        printed = b"" if stdout else streams[1].read_bytes()
        return Done(process.exitcode, printed, streams[2].read_bytes())


class Terminal:
    """A terminal with a script that runs in it, for programs that react to a user."""

    def __init__(self, file: int, process: multiprocessing.process.BaseProcess) -> None:
        self._file, self._process = file, process
        self.output = ""

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def press(self, text: str) -> None:
        """Press keys. A control character, such as `CTRL_C`, is a key, too."""
        os.write(self._file, text.encode())

    def wait_for(self, text: str, repeat: Callable[[], object] | None = None) -> str:
        """Return the output since the last call, up to and including a text.

        Args:
            text: The text to wait for.
            repeat: An action to repeat every few seconds until the text appears. Python's `input` can miss a signal
                that arrives in the moment before it waits for a key.

        Raises:
            subprocess.TimeoutExpired: The text does not appear.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        while text not in self.output:
            left = until - time.monotonic()
            if not select.select([self._file], [], [], max(0, min(left, 3) if repeat else left))[0]:
                if repeat is None or left <= 0:
                    raise subprocess.TimeoutExpired(f"waiting for {text!r}, found {self.output!r}", _PATIENCE_SECONDS)
                repeat()
                continue
            self.output += os.read(self._file, 4096).decode(errors="replace")
        before, _, self.output = self.output.partition(text)
        return before + text

    def wait(self) -> int:
        """Return the exit code of the process after it has ended."""
        self._process.join(_PATIENCE_SECONDS)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode


@contextmanager
def in_terminal(script: Path, *arguments: str | Path) -> Iterator[Terminal]:
    """Run `python SCRIPT ARGUMENTS` in a terminal of its own, and end the process after the block."""
    file, other = pty.openpty()
    name = os.ttyname(other)
    command, variables = [str(script), *map(str, arguments)], {**os.environ, "TERM": "dumb"}
    process = FORKSERVER.Process(target=_run_in_terminal, args=(command, ROOT, variables, [Path(name)] * 3))
    process.start()
    try:
        yield Terminal(file, process)
    finally:
        process.kill()
        process.join()
        os.close(other)
        os.close(file)


def _run_in_terminal(command: list[str], cwd: Path, variables: dict[str, str], streams: list[Path]) -> None:
    os.setsid()  # the first terminal that this process opens sends it the signals of keys
    _run(command, cwd, variables, streams)


def _run(command: list[str], cwd: Path, variables: dict[str, str], streams: list[Path]) -> None:
    """Make this fork look like a new process, and run the script in it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1)
    sys.argv[:] = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
