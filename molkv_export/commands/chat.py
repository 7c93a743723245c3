"""`molkv-export chat`."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from molkv_bundle import MolkvError, RequestError
from molkv_export.commands.generation import GenerationOptions, generation_options, print_pieces
from molkv_export.commands.options import LOCATION, PATH, common_options
from molkv_export.terminal import Terminated, print_line
from molkv_runtime import Chat, Generator, Options

_PROMPT, _MORE = "> ", "... "
_BLOCK = '"""'
_EXIT = "/exit"
_HELP = f"""\
/save FILE   write the conversation to a file
/load FILE   continue the conversation of a file
/undo        remove the last message and its answer
/clear       remove all messages except the system message
/help        show this text
{_EXIT}        end the program, as Ctrl-D does

A line is a message. For a message of several lines (a block), write a line {_BLOCK} before and
after it, or end each line except the last one with a backslash. The lines of a block may begin
with /. Ctrl-C stops an answer."""


@click.command("chat")
@click.argument("bundle", type=LOCATION)
@click.option("--system", metavar="TEXT", default="", help="System message, which tells the model how to answer.")
@click.option(
    "--template",
    type=PATH,
    metavar="FILE",
    help="File with a chat template: Jinja, or a tokenizer_config.json. [default: the bundle's]",
)
@click.option("--load", type=PATH, metavar="FILE", help="Conversation to continue: a file that /save wrote.")
@generation_options(max_new_tokens=512)
@common_options
def chat_command(
    bundle: Path | str,
    system: str,
    template: Path | None,
    load: Path | None,
    generation: GenerationOptions,
    notes: Console,
) -> None:
    """Talk to the model of BUNDLE. The command does not need PyTorch.

    Each line of standard input is a message. The answers go to standard output. In the conversation, /help lists the
    commands, such as /save and /undo. Ctrl-C stops an answer. Ctrl-D or /exit ends the program.

    \b
    Examples:
      molkv-export chat my.bundle
      molkv-export chat my.bundle --system "Answer in one sentence." --temperature 0.7
      molkv-export chat my.bundle --template chatml.jinja --stop "<|im_end|>"
      molkv-export chat my.bundle --load monday.chat < questions.txt > answers.txt
    """
    if system and load:
        raise click.UsageError("found --system and --load, expected at most one of them: a file has its system message")
    generator, options = generation.open(bundle, notes)
    chat = Chat.restored(generator, load, template) if load else Chat(generator, template, system=system)
    _Conversation(generator, chat, options, notes).run()


class _Line(NamedTuple):
    """A message or a command of the user."""

    text: str
    is_command: bool = False


class _Conversation:
    """The loop that reads messages and commands, and prints answers."""

    def __init__(self, generator: Generator, chat: Chat, options: Options, notes: Console) -> None:
        self._generator, self._chat, self._options, self._notes = generator, chat, options, notes
        self._is_interactive = sys.stdin is not None and sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/save": self._save,
            "/load": self._load,
            "/undo": self._undo,
            "/clear": self._clear,
            "/help": self._help,
        }

    def run(self) -> None:
        """Handle lines until the end of the input or /exit."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            if not self._is_interactive:
                sys.stdin.reconfigure(encoding="utf-8-sig", newline="\n")  # without a byte order mark
            sys.stdin.reconfigure(errors="surrogateescape")  # `Chat.reply` refuses bytes that are not text
        if self._is_interactive:
            _keep_history()
            print_line(self._notes, f"/help lists the commands; {_EXIT} or Ctrl-D ends the program")
        before = signal.getsignal(signal.SIGINT)
        try:
            while self._handle_line():
                pass
        finally:
            signal.signal(signal.SIGINT, before)

    def _handle_line(self) -> bool:
        """Read and handle a line. Return whether the program goes on."""
        line: _Line | None = _Line("")
        with self._stoppable(f"{_EXIT} or Ctrl-D ends the program"):
            line = self._read()
        if line is None:
            return False
        words = line.text.strip().split(maxsplit=1)
        if line.is_command and words[0] == _EXIT:
            return False
        try:
            if line.is_command:
                with self._stoppable(f"stopped {words[0]}"):
                    self._run_command(*words)
            elif words:
                with self._stoppable("stopped; the conversation keeps the answer so far"):
                    self._answer(line.text)
        except MolkvError as error:
            self._report(error)
        return True

    def _report(self, error: MolkvError) -> None:
        """Print an error if the user sits at a terminal. Else raise the error, so that a script sees the exit code."""
        if not self._is_interactive:
            raise error
        click.echo(f"error: {error}", err=True)

    @contextmanager
    def _stoppable(self, note: str) -> Iterator[None]:
        """Let Ctrl-C end this block instead of the program if the user sits at a terminal. Then print a note.

        Outside of such blocks, Ctrl-C has no effect. So a second Ctrl-C cannot end the program.
        """
        if not self._is_interactive:
            yield
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        except Terminated:
            raise
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print_line(self._notes, note)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _read(self) -> _Line | None:
        """Return the next message or command; None at the end of the input, also inside a block."""
        line = self._read_line(_PROMPT)
        if line is None:
            return None
        lines: list[str] = []
        if line.strip() == _BLOCK:
            while (line := self._read_line(_MORE)) is not None:
                if line.strip() == _BLOCK:
                    return _Line("\n".join(lines))
                lines.append(line)
            self._report(RequestError(f"found the end of the input in a block, expected a line {_BLOCK} after it"))
            return None
        while line is not None and line.endswith("\\"):
            lines.append(line[:-1])
            line = self._read_line(_MORE)
        if line is not None:
            lines.append(line)
        return _Line("\n".join(lines), is_command=len(lines) == 1 and lines[0].startswith("/"))

    def _read_line(self, prompt: str) -> str | None:
        if not self._is_interactive:
            line = sys.stdin.readline() if sys.stdin is not None else ""
        elif sys.stdout.isatty():
            try:
                return input(prompt)
            except (EOFError, KeyboardInterrupt) as error:
                click.echo(err=True)  # the cursor is behind the prompt
                if isinstance(error, EOFError):
                    return None
                raise
        else:  # `input` would print the prompt to standard output, which is not the terminal
            click.echo(prompt, nl=False, err=True)
            line = sys.stdin.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None

    def _answer(self, message: str) -> None:
        print_pieces(self._chat.reply(message, **self._options), self._notes)
        if self._chat.finish == "length":
            most = self._options["max_new_tokens"]
            reason = f"has {most} tokens (--max-new-tokens)" if self._chat.new_tokens == most else "fills the context"
            print_line(self._notes, f"note: the answer {reason}")

    def _run_command(self, name: str, argument: str = "") -> None:
        if (command := self._commands.get(name)) is None:
            raise RequestError(f"{name}: is not a command; /help lists the commands and explains {_BLOCK}")
        takes_file = name in ("/save", "/load")
        if takes_file and not argument:
            raise RequestError(f"{name}: found no file name, expected {name} FILE")
        if argument and not takes_file:
            raise RequestError(f"{name}: found {argument!r}, expected nothing after {name}")
        command(argument)

    def _save(self, name: str) -> None:
        self._chat.save(_path(name))
        print_line(self._notes, f"saved {len(self._chat.messages)} messages")

    def _load(self, name: str) -> None:
        self._chat = Chat.restored(self._generator, _path(name), self._chat.template)
        print_line(self._notes, f"loaded {len(self._chat.messages)} messages")

    def _undo(self, _argument: str) -> None:
        self._chat.undo()
        print_line(self._notes, f"removed the last message and its answer; messages left: {len(self._chat.messages)}")

    def _clear(self, _argument: str) -> None:
        self._chat.clear()
        print_line(self._notes, f"removed the conversation; messages left: {len(self._chat.messages)}")

    def _help(self, _argument: str) -> None:
        click.echo(_HELP, err=True)


def _path(name: str) -> Path:
    """Return the path that a user typed; ~ is the home folder.

    Raises:
        RequestError: The name cannot be the name of a file.
    """
    if "\0" in name:
        raise RequestError(f"{name}: contains a NUL character, expected the name of a file")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # there is no such user
        raise RequestError(f"{name}: has no home folder ({error})") from error


def _keep_history() -> None:
    """Let `input` keep a history of the lines and edit them, if Python was built with readline."""
    with suppress(ImportError):
        import readline  # noqa: F401
