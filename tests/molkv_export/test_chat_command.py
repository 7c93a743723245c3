"""`molkv-export chat`: messages from a pipe, and a user at a terminal."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from molkv_export.commands import cli
from molkv_runtime import Chat, Generator
from tests.processes import CLI, CTRL_C, CTRL_D, in_terminal, run_cli, run_script

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# The first answer waits after three tokens. A second Ctrl-C comes before the note about the first one is printed.
SCRIPT = """
import os
import signal
import sys
import threading

from molkv_export.commands import chat, main
from molkv_runtime import Session

stream = Session.stream
print_line = chat.print_line


def waiting(session, ids, **options):
    Session.stream = stream
    for number, token in enumerate(stream(session, ids, **options), start=1):
        yield token
        if number == 3:
            print("[waiting]", file=sys.stderr)
            threading.Event().wait()


def interrupted(notes, text):
    if text.startswith("stopped"):
        os.kill(os.getpid(), signal.SIGINT)
    print_line(notes, text)


Session.stream = waiting
chat.print_line = interrupted
main()
"""
MAIN = "from molkv_export.commands import main\nmain()\n"
# Ctrl-C while the program answers a message.
INTERRUPTED = f"""
import os
import signal

from molkv_runtime import Chat

Chat.reply = lambda *_, **__: (os.kill(os.getpid(), signal.SIGINT) for _ in "x")
{MAIN}"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def talk(stdlib_mini_bundle: Path, template: Path) -> Callable[..., Result]:
    """Return a function that runs `chat` in this process, with standard input from a pipe."""

    def talk(text: str | bytes, *options: str | Path) -> Result:
        command = ["chat", stdlib_mini_bundle, "--template", template, "--max-new-tokens", "5", *options]
        done = CliRunner().invoke(cli, [str(word) for word in command], input=text)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return talk


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each message instead of answering it."""
    noted: list[str] = []

    def note(_chat: Chat, content: str, **_options: object) -> list[str]:
        noted.append(content)
        return []

    monkeypatch.setattr(Chat, "reply", note)
    return noted


def test_each_line_of_a_pipe_is_a_message(stdlib_mini_bundle: Path, template: Path) -> None:
    chat = Chat(Generator(stdlib_mini_bundle), template, system="Be brief.")
    expected = "".join("".join(chat.reply(line, max_new_tokens=5)) + "\n" for line in ("import os", "import sys"))
    options = ("--template", template, "--system", "Be brief.", "--max-new-tokens", "5", "-q")
    done = run_cli("chat", stdlib_mini_bundle, *options, stdin=b"import os\n\n  \nimport sys")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_lines_become_messages(talk: Callable[..., Result], sent: list[str]) -> None:
    text = 'one\n"""\ntwo\n\n  three\\\n/undo\n"""\nfour\\\n/undo\\\nfive\n "six"\n """ \nseven\n"""\t'
    messages = ["one", "two\n\n  three\\\n/undo", "four\n/undo\nfive", ' "six"', "seven"]
    assert talk(text).exit_code == 0
    assert sent == messages
    assert talk(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()).exit_code == 0  # a file of Windows
    assert sent == 2 * messages


def test_only_the_mark_and_the_line_end_of_windows_are_removed(talk: Callable[..., Result], sent: list[str]) -> None:
    assert talk("\N{BYTE ORDER MARK}\N{BYTE ORDER MARK}a\rb\r\r\n\N{BYTE ORDER MARK}\r\n").exit_code == 0
    assert sent == ["\N{BYTE ORDER MARK}a\rb\r", "\N{BYTE ORDER MARK}"]


def test_exit_ends_the_program(talk: Callable[..., Result], sent: list[str]) -> None:
    assert talk("one\n /exit\n/exit\ntwo\n").exit_code == 0
    assert sent == ["one", " /exit"]


def test_the_options_reach_the_model(talk: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Chat, "reply", lambda *_, **options: asked.append(options) or [])
    talk("x\n", "--stop", "a", "--stop", "\n", "--lookup", "3", "--temperature", "0.5", "--seed", "7")
    ((options),) = asked
    sampling = options.pop("sampling")
    assert (sampling.temperature, sampling.seed) == (0.5, 7)
    assert options == {"max_new_tokens": 5, "stop": ("a", "\n"), "lookup": 3}


def test_commands_change_save_and_load_the_conversation(
    talk: Callable[..., Result], stdlib_mini_bundle: Path, template: Path, tmp_path: Path
) -> None:
    file = tmp_path / "my chat"
    lines = ["import os", f"/save {file}", "import sys", "/undo", "/clear", f"/load {file}", "import re"]
    done = talk("\n".join(lines), "--system", "Be brief.")
    assert done.exit_code == 0
    notes = [line for line in done.stderr.splitlines() if line != "note: the answer has 5 tokens (--max-new-tokens)"]
    assert notes == [
        "saved 3 messages",
        "removed the last message and its answer; messages left: 3",
        "removed the conversation; messages left: 1",
        "loaded 3 messages",
    ]
    chat = Chat.restored(Generator(stdlib_mini_bundle), file, template)
    assert [message["content"] for message in chat.messages[:2]] == ["Be brief.", "import os"]
    answer = "".join(chat.reply("import re", max_new_tokens=5))
    assert done.stdout.endswith(f"{answer}\n")
    assert talk("import re\n", "--load", file).stdout == f"{answer}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo", '/foo: is not a command; /help lists the commands and explains """'),
        ("/", '/: is not a command; /help lists the commands and explains """'),
        ("/undo it", "/undo: found 'it', expected nothing after /undo"),
        ("/save", "/save: found no file name, expected /save FILE"),
        ("/load \0", "\\x00: contains a NUL character, expected the name of a file"),
        ("/load none", "none: cannot be opened (No such file or directory)"),
        (f"/load {'x' * 300}", f"{'x' * 300}: cannot be opened (File name too long)"),
        ("/save none", "there is no answer to save yet"),
        ("/undo", "there is no message to remove, expected a message of the user and its answer"),
        ('"""\nx', 'found the end of the input in a block, expected a line """ after it'),
        ("def f(x):" * 300, "the conversation has "),
        (b"\xff", "the message '\\udcff' contains bytes that are not text, expected UTF-8"),
    ],
)
def test_an_error_in_a_pipe_is_one_line_and_ends_the_program(
    line: str | bytes, message: str, stdlib_mini_bundle: Path, template: Path
) -> None:
    text = (line.encode() if isinstance(line, str) else line) + b"\nimport os\n"
    done = run_cli("chat", stdlib_mini_bundle, "--template", template, stdin=text)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_an_error_at_a_terminal_does_not_end_the_program(stdlib_mini_bundle: Path, template: Path) -> None:
    options = ("--template", template, "--max-new-tokens", "5")
    with in_terminal(CLI, "chat", stdlib_mini_bundle, *options) as terminal:
        terminal.wait_for("> ")
        terminal.press("/foo\n")
        terminal.wait_for("error: /foo: is not a command")
        terminal.wait_for("> ")
        terminal.press("import os\n")
        terminal.wait_for("note: the answer has 5 tokens (--max-new-tokens)")
        terminal.wait_for("> ")
        terminal.press('"""\n')
        terminal.wait_for("... ")
        terminal.press(CTRL_D)
        terminal.wait_for("error: found the end of the input in a block")
        assert terminal.wait() == 0


def test_a_note_says_that_the_context_is_full(talk: Callable[..., Result]) -> None:
    done = talk("x = 1; " * 50 + "\n", "--max-new-tokens", "500")
    assert (done.exit_code, done.stderr) == (0, "note: the answer fills the context\n")


def test_a_damaged_record_ends_the_answer_and_the_program(
    stdlib_mini_bundle: Path, template: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    generator = Generator(bundle)
    (token,) = set(generator.encode(["import re"])[0]) - set(generator.encode(["import os"])[0])
    (shard,) = generator.bundle.manifest.experts.shards
    data = bytearray((bundle / shard.file).read_bytes())
    data[4096 + token * generator.bundle.manifest.experts.stride] ^= 1
    (bundle / shard.file).write_bytes(data)
    done = run_cli("chat", bundle, "--template", template, stdin=b"import re\nimport os\n")
    assert (done.returncode, done.stdout) == (1, "\n")
    assert done.stderr.startswith("error: ")
    assert f"(token id {token}) fails its checksum" in done.stderr


def test_help_lists_every_command(talk: Callable[..., Result]) -> None:
    done = talk("/help\n", "-q")
    assert done.stdout == ""
    assert [line.split()[0] for line in done.stderr.splitlines() if line.startswith("/")] == [
        "/save",
        "/load",
        "/undo",
        "/clear",
        "/help",
        "/exit",
    ]


def test_errors_at_the_start_end_the_program(
    bundles: Callable[..., Path], stdlib_mini_bundle: Path, template: Path, tmp_path: Path
) -> None:
    session = Generator(stdlib_mini_bundle).session()
    list(session.text("def ", max_new_tokens=1))
    session.save(tmp_path / "session")
    started = ("chat", stdlib_mini_bundle, "--template", template)
    for status, message, command in [
        (1, "has no chat template; give a chat template with --template FILE", ("chat", stdlib_mini_bundle)),
        (1, "has no tokenizer.json", ("chat", bundles("molkv"), "--template", template)),
        (1, "cannot be read", ("chat", stdlib_mini_bundle, "--template", "none")),
        (1, "messages: not found, expected a list", (*started, "--load", tmp_path / "session")),
        (2, "--stop: found a string of 0 characters, expected 1 to 1000 characters", (*started, "--stop", "")),
        (2, "found --system and --load, expected at most one of them", (*started, "--system", "x", "--load", "y")),
    ]:
        done = run_cli(*command, stdin=b"import os\n")
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_ctrl_c_stops_an_answer_and_not_the_program(
    script: Path, stdlib_mini_bundle: Path, template: Path, tmp_path: Path
) -> None:
    options = ("--template", template, "--max-new-tokens", "5")
    with in_terminal(script, "chat", stdlib_mini_bundle, *options) as terminal:
        assert "/help lists the commands" in terminal.wait_for("> ")
        terminal.press("import os\n")
        terminal.wait_for("[waiting]")
        terminal.press(CTRL_C)
        terminal.wait_for("stopped; the conversation keeps the answer so far")
        terminal.wait_for("> ")
        terminal.press("import sys\n")
        terminal.wait_for("note: the answer has 5 tokens")
        terminal.wait_for("> ")
        terminal.press(f"/save {tmp_path / 'chat'}\n")
        terminal.wait_for("saved 4 messages")
        terminal.wait_for("> ")
        terminal.press(CTRL_D)
        assert terminal.wait() == 0
    generator = Generator(stdlib_mini_bundle)
    first = generator.complete(["user: import os\nassistant:"], max_new_tokens=3)[0].text
    prompt = f"user: import os\nassistant: {first}\nuser: import sys\nassistant:"
    second = generator.complete([prompt], max_new_tokens=5)[0].text
    messages = Chat.restored(generator, tmp_path / "chat", template).messages
    assert [message["content"] for message in messages] == ["import os", first, "import sys", second]


def test_ctrl_c_at_the_prompt_drops_the_input_and_shows_how_to_leave(
    script: Path, stdlib_mini_bundle: Path, template: Path
) -> None:
    with in_terminal(script, "chat", stdlib_mini_bundle, "--template", template) as terminal:
        terminal.wait_for("> ")
        terminal.press('"""\n')
        terminal.wait_for("... ")
        terminal.press("dropped")
        terminal.wait_for("dropped")
        for _ in range(2):  # the second time with an empty line
            terminal.press(CTRL_C)
            terminal.wait_for("/exit or Ctrl-D ends the program", repeat=partial(terminal.press, CTRL_C))
            terminal.wait_for("> ")
        terminal.press("/exit\n")
        assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("answering", [False, True])
def test_other_signals_end_the_program(
    number: signal.Signals, answering: bool, script: Path, stdlib_mini_bundle: Path, template: Path
) -> None:
    with in_terminal(script, "chat", stdlib_mini_bundle, "--template", template) as terminal:
        terminal.wait_for("> ")
        if answering:
            terminal.press("import os\n")
            terminal.wait_for("[waiting]")
        os.kill(terminal.pid, number)
        terminal.wait_for("error: interrupted", repeat=partial(os.kill, terminal.pid, number))
        assert terminal.wait() == 130


def test_ctrl_c_ends_a_program_that_reads_a_file(stdlib_mini_bundle: Path, template: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    chat = ("chat", stdlib_mini_bundle, "--template", template)
    done = run_script(script, *chat, stdin=b"import os\nimport sys\n")
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_prompts_do_not_enter_a_file_with_the_answers(stdlib_mini_bundle: Path, template: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os\nos.dup2(os.open({str(tmp_path / 'answers')!r}, os.O_RDWR | os.O_CREAT), 1)\n{MAIN}")
    with in_terminal(script, "chat", stdlib_mini_bundle, "--template", template) as terminal:
        terminal.wait_for("> ")
        terminal.press("import os\n")
        terminal.wait_for("> ")
        terminal.press(CTRL_D)
        assert terminal.wait() == 0
    chat = Chat(Generator(stdlib_mini_bundle), template)
    assert (tmp_path / "answers").read_text() == "".join(chat.reply("import os", max_new_tokens=512)) + "\n"
