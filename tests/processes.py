"""The command line and other scripts in processes of their own, which start in milliseconds.

A new Python process takes seconds to import PyTorch and ONNX. A fork server imports them once. Each run is a fork of
it with its own arguments, environment, working directory and standard streams.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLI = ROOT / "cli.py"
_PATIENCE_SECONDS = 240

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
    stdout: Path | None = None,
) -> Done:
    """Run `python cli.py ARGUMENTS`; the other arguments are those of `run_script`."""
    return run_script(CLI, *arguments, cwd=cwd, environment=environment, stdout=stdout)


def run_script(
    script: Path,
    *arguments: str | Path,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stdout: Path | None = None,
) -> Done:
    """Run `python SCRIPT ARGUMENTS`.

    Args:
        script: A Python file.
        arguments: Arguments of the script.
        cwd: Working directory of the process.
        environment: Environment variables in addition to those of this process.
        stdout: File that standard output is written to. `stdout_bytes` is then empty.

    Raises:
        subprocess.TimeoutExpired: The process does not end.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as name:
        streams = [stdout or Path(name) / "stdout", Path(name) / "stderr"]
        variables = {**os.environ, **(environment or {})}
        process = FORKSERVER.Process(target=_run, args=(command, cwd, variables, streams))
        process.start()
        process.join(_PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, _PATIENCE_SECONDS)
        printed = b"" if stdout else streams[0].read_bytes()
        return Done(process.exitcode, printed, streams[1].read_bytes())


def _run(command: list[str], cwd: Path, variables: dict[str, str], streams: list[Path]) -> None:
    """Make this fork look like a new process, and run the script in it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(os.devnull, encoding=encoding)  # noqa: PTH123, SIM115 (open until the process ends)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1)
    sys.argv[:] = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
