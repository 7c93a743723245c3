"""The command line: one file per command, each thin over one public function."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

import click

from molkv_bundle import MissingExtraError, MolkvError
from molkv_export import __version__
from molkv_export.commands.bench import bench_command
from molkv_export.commands.export import export_command
from molkv_export.commands.inspect import inspect_command
from molkv_export.commands.package import package_command
from molkv_export.commands.run import run_command
from molkv_export.commands.selftest import selftest_command
from molkv_export.commands.train import train_command
from molkv_export.commands.validate import validate_command
from molkv_export.commands.verify import verify_command

_EXPORTER_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "jinja2", "markupsafe", "matplotlib"}
_INTERRUPTED = 130
_STDOUT = "standard output"
_ERRORS = "backslashreplace"  # of encoding


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Put lookup-expert language models (MoLE, MoLKV) on devices.

    Export a trained checkpoint to a bundle (dense graph plus expert store), prove that the bundle is the model that was
    trained, look into it, and generate text with it.
    """


for _command in (
    export_command,
    validate_command,
    verify_command,
    selftest_command,
    bench_command,
    run_command,
    inspect_command,
    package_command,
    train_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; whatever a user can cause ends in one line and a non-zero exit status."""
    _set_up_stdout()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, _terminate)
    try:
        try:
            status = cli.main(standalone_mode=False)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(status)
    except MolkvError as error:
        _fail("; ".join((str(error), *getattr(error, "__notes__", ()))))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXPORTER_PACKAGES:
            raise
        _fail(
            str(
                MissingExtraError(
                    f"this command needs the exporter, {error.name} is missing: pip install 'molkv-export[export]'"
                )
            )
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        _fail("; ".join(("interrupted", *getattr(error.__cause__ or error, "__notes__", ()))), _INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough
        _discard(sys.stdout)
        _discard(sys.stderr)
        sys.exit(1)
    except OSError as error:  # of a file of the user's, where nothing nearer has explained it
        if error.filename is None:
            raise
        if error.filename == _STDOUT:
            _discard(sys.stdout)
        _fail(f"{error.filename}: {error.strerror}")


class _Stdout(io.FileIO):
    """Standard output whose errors have its name, as those of other files have."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _set_up_stdout() -> None:
    """Let standard output show what it cannot encode as standard error does, and name itself where it fails."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):  # it is closed
        return
    if stdout.isatty():
        stdout.reconfigure(errors=_ERRORS)
        return
    stdout.flush()
    raw = _Stdout(stdout.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding=stdout.encoding, errors=_ERRORS)


def _discard(stream: TextIO | None) -> None:
    """Let a stream write nowhere, so that what is left in it is no error when Python ends."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int = 1) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(status)
