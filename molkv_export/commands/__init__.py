"""The command line. Every command has its own file and calls one public function.

Exit codes:
    0: Done, and every check passed.
    1: An error, or a check failed: a gate of `validate`, a difference in `selftest`, damage in `verify`.
    2: The arguments are wrong: click refuses them, or a function raises ArgumentError for the value of an option. This
        includes values that are wrong only for this model. Errors about files and prompts exit with 1.
    130: Interrupted by SIGINT, SIGTERM or SIGHUP. At a terminal, SIGINT (Ctrl-C) does not end `chat`.

Standard output holds the result: text, or JSON with --json (one document; `run` prints one for each prompt). Standard
error holds progress, notes, details and errors. An error is one line that begins with "error: ". `common_options` in
options.py adds --quiet and --verbose to every command, and turns an ArgumentError into an error of click that names the
option.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

import click

from molkv_bundle import MissingExtraError, MolkvError, printable
from molkv_export import __version__
from molkv_export.commands.bench import bench_command
from molkv_export.commands.chat import chat_command
from molkv_export.commands.export import export_command
from molkv_export.commands.inspect import inspect_command
from molkv_export.commands.package import package_command
from molkv_export.commands.providers import providers_command
from molkv_export.commands.push import push_command
from molkv_export.commands.run import run_command
from molkv_export.commands.selftest import selftest_command
from molkv_export.commands.train import train_command
from molkv_export.commands.validate import validate_command
from molkv_export.commands.verify import verify_command
from molkv_export.terminal import Terminated

_EXPORTER_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "matplotlib"}
_INTERRUPTED = 130
_STDOUT = "standard output"
_ERRORS = "backslashreplace"  # characters that standard output cannot encode are escaped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Run lookup-expert language models (MoLE, MoLKV) on devices.

    Export a trained checkpoint to a bundle (dense graph and expert store), check that the bundle computes the same as
    the checkpoint, inspect the bundle, and generate text with it.

    Exit codes: 0: done, and every check passed; 1: an error, or a check failed; 2: wrong arguments; 130: interrupted.

    \b
    Examples:
      molkv-export export examples/stdlib-mini stdlib-mini.bundle
      molkv-export run stdlib-mini.bundle --prompt "def "
    """


for _command in (
    export_command,
    validate_command,
    verify_command,
    selftest_command,
    bench_command,
    run_command,
    chat_command,
    inspect_command,
    package_command,
    push_command,
    providers_command,
    train_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line. For an error that a user can cause, print one line and exit with a non-zero code."""
    _set_up_stdout()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)
    try:
        try:
            status = cli.main(standalone_mode=False)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(status)
    except MolkvError as error:
        _fail(_with_notes(str(error), error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXPORTER_PACKAGES:
            raise
        _fail(
            str(
                MissingExtraError(
                    f"this command needs the exporter, but {error.name} is missing; "
                    "run: pip install 'molkv-export[export]'"
                )
            )
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(_with_notes(_message(error), error.__cause__), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        _fail(_with_notes("interrupted", error.__cause__ or error), _INTERRUPTED)
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        _discard(sys.stdout)
        _discard(sys.stderr)
        sys.exit(1)
    except OSError as error:  # an error about a user's file that no other code has explained
        if error.filename is None:
            raise
        if error.filename == _STDOUT:
            _discard(sys.stdout)
        _fail(f"{error.filename}: {error.strerror}")


class _Stdout(io.FileIO):
    """Standard output. The `filename` of its errors is "standard output"."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _set_up_stdout() -> None:
    """Make standard output escape characters that it cannot encode, and put its name in its errors."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):  # standard output is closed
        return
    if stdout.isatty():
        stdout.reconfigure(errors=_ERRORS)
        return
    stdout.flush()
    raw = _Stdout(stdout.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding=stdout.encoding, errors=_ERRORS)


def _discard(stream: TextIO | None) -> None:
    """Redirect a stream to the null device, so that flushing it when Python ends raises no error."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _message(error: click.ClickException) -> str:
    """Return the message of a click error as one line, which begins with the name of the option if there is one."""
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param:
        name = error.param.opts[-1] if isinstance(error.param, click.Option) else error.param.human_readable_name
        return f"{name}: {error.message.rstrip('.')}"
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message.rstrip('.')} (see {error.ctx.command_path} --help)"
    return message


def _with_notes(message: str, error: BaseException | None) -> str:
    return "; ".join((message, *getattr(error, "__notes__", ())))


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _fail(message: str, status: int = 1) -> None:
    click.echo(f"error: {printable(message)}", err=True)
    sys.exit(status)
