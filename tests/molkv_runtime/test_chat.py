"""Conversations: the messages, the text that the model continues, and the file of a conversation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import ArgumentError, BundleError, RequestError, SessionError
from molkv_runtime import Chat, ChatTemplate, Generator, Session, Token
from molkv_runtime.window import ExpertWindow

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SHORT: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def stdlib(stdlib_mini_bundle: Path) -> Generator:
    return Generator(stdlib_mini_bundle, prefix_cache_bytes=0)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE, {}, "template", RequestError)


@pytest.fixture
def chat(stdlib: Generator, template: ChatTemplate) -> Chat:
    return Chat(stdlib, template)


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Note the token ids that each call of `Session.stream` appends."""
    noted = []
    stream = Session.stream

    def noting(session: Session, ids: list[int], **options: Any) -> Iterator[Token]:
        noted.append(list(ids))
        return stream(session, ids, **options)

    monkeypatch.setattr(Session, "stream", noting)
    return noted


def _failing_after(count: int, error: BaseException) -> Callable[..., Iterator[Token]]:
    """Return a `Session.stream` that raises an error after some tokens."""
    stream = Session.stream

    def failing(session: Session, ids: list[int], **options: Any) -> Iterator[Token]:
        yield from itertools.islice(stream(session, ids, **options), count)
        raise error

    return failing


def _say(chat: Chat, content: str, **options: Any) -> str:
    return "".join(chat.reply(content, **{**SHORT, **options}))


def test_answers_continue_the_text_of_the_template(stdlib: Generator, template: ChatTemplate) -> None:
    chat = Chat(stdlib, template, system="You are brief.")
    first = _say(chat, "import os")
    (expected,) = stdlib.complete(["system: You are brief.\nuser: import os\nassistant:"], **SHORT)
    assert first == expected.text != ""
    second = _say(chat, "import sys")
    before = f"system: You are brief.\nuser: import os\nassistant: {first}\nuser: import sys\nassistant:"
    assert second == stdlib.complete([before], **SHORT)[0].text
    assert chat.messages == [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "import os"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "import sys"},
        {"role": "assistant", "content": second},
    ]
    assert chat.finish == "length"


def test_only_the_new_part_of_the_conversation_is_computed(
    stdlib: Generator, chat: Chat, prefilled: list[list[int]]
) -> None:
    _say(chat, "import os")
    _say(chat, "import sys")
    whole = chat.template.render(chat.messages[:-1])
    (ids,) = stdlib.encode([whole], add_special_tokens=False)
    assert prefilled[1] == ids[len(ids) - len(prefilled[1]) :]
    assert len(prefilled[1]) <= len(ids) - len(prefilled[0])


def test_an_answer_that_the_caller_stops_is_kept(chat: Chat) -> None:
    answer = chat.reply("import os", max_new_tokens=100)
    text = next(answer) + next(answer)
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": text}
    assert chat.finish is None
    assert chat.new_tokens == 2
    assert _say(chat, "import sys")
    assert chat.new_tokens == SHORT["max_new_tokens"]


def test_an_interrupted_answer_is_kept_and_the_next_one_is_right(
    stdlib: Generator, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Session, "stream", _failing_after(4, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            _say(chat, "import os", max_new_tokens=100)
    (partial,) = stdlib.complete(["user: import os\nassistant:"], max_new_tokens=4)
    assert chat.messages[-1] == {"role": "assistant", "content": partial.text}
    text = f"user: import os\nassistant: {partial.text}\nuser: import sys\nassistant:"
    assert _say(chat, "import sys") == stdlib.complete([text], **SHORT)[0].text


def test_the_answer_after_an_interrupt_does_not_use_an_expert_window_that_is_written_in_part(
    stdlib: Generator, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt the call that ends a prefill, when half of the expert window belongs to the new text."""
    first = _say(chat, "import os")

    def half(window: ExpertWindow, _sequence: int, _end: int) -> None:
        for array in window.decode_inputs.values():
            if array.dtype.kind == "f" and array.ndim == 3 and array.shape[0] == 1:
                array[:, : array.shape[1] // 2] = 1e3
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ExpertWindow, "finish", half)
        with pytest.raises(KeyboardInterrupt):
            _say(chat, "def f(x, y, z): return x + y + z\n" * 4)
    chat.undo()
    text = f"user: import os\nassistant: {first}\nuser: import sys\nassistant:"
    assert _say(chat, "import sys") == stdlib.complete([text], **SHORT)[0].text


def test_after_an_error_the_conversation_is_as_before(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    _say(chat, "import os")
    before = [dict(message) for message in chat.messages]
    with pytest.raises(RequestError, match=r"has \d+ tokens with this message, expected at most 512 .*/undo, /clear"):
        chat.reply("def f(x):\n" * 500)
    with pytest.raises(ArgumentError, match="max_new_tokens: found 0"):
        chat.reply("import sys", max_new_tokens=0)
    with pytest.raises(RequestError, match=r"the message '\\udcff' contains bytes that are not text"):
        chat.reply("\udcff")
    with pytest.raises(RequestError, match="content: found int, expected str"):
        chat.reply(5)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "stream", _failing_after(3, BundleError("a record is damaged")))
        with pytest.raises(BundleError):
            _say(chat, "import sys")
    assert chat.messages == before
    assert _say(chat, "import sys")


def test_a_later_message_ends_an_answer_and_is_not_removed_by_its_error(chat: Chat) -> None:
    first = chat.reply("import os", max_new_tokens=100)
    begun = next(first)
    second = _say(chat, "import sys")
    with pytest.raises(RequestError, match="in use by a later call"):
        list(first)
    assert [message["content"] for message in chat.messages] == ["import os", begun, "import sys", second]


def test_undo_removes_the_last_exchange(stdlib: Generator, template: ChatTemplate) -> None:
    chat = Chat(stdlib, template, system="s")
    first = _say(chat, "import os")
    second = _say(chat, "import sys")
    chat.undo()
    assert [message["content"] for message in chat.messages] == ["s", "import os", first]
    assert _say(chat, "import sys") == second
    chat.undo()
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "s"}]
    with pytest.raises(RequestError, match="there is no message to remove"):
        chat.undo()


def test_clear_keeps_the_system_message(stdlib: Generator, template: ChatTemplate) -> None:
    chat = Chat(stdlib, template, system="s")
    first = _say(chat, "import os")
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "s"}]
    assert _say(chat, "import os") == first


def test_a_saved_conversation_goes_on(
    stdlib: Generator, chat: Chat, prefilled: list[list[int]], tmp_path: Path
) -> None:
    _say(chat, "import os")
    chat.save(tmp_path / "chat")
    expected, whole = _say(chat, "import sys"), prefilled[-1]
    restored = Chat.restored(stdlib, tmp_path / "chat", chat.template)
    assert restored.messages == chat.messages[:2]
    assert _say(restored, "import sys") == expected
    assert prefilled[-1] == whole  # the KV cache was restored
    assert restored.messages == chat.messages


def test_a_saved_file_has_nothing_of_what_was_removed(stdlib: Generator, chat: Chat, tmp_path: Path) -> None:
    _say(chat, "import os")
    _say(chat, "secret")
    chat.undo()
    chat.save(tmp_path / "chat")
    saved = stdlib.tokenizer.decode(stdlib.restore(tmp_path / "chat").ids)
    assert "import os" in saved
    assert "secret" not in saved
    chat.clear()
    with pytest.raises(RequestError, match="there is no answer to save yet"):
        chat.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: not found"),
        ([{"role": "user", "text": "x"}], r"messages\[0\]: found no 'content'"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], r"messages\[1\]: found no 'role'"),
    ],
)
def test_a_session_that_is_no_conversation_is_refused(
    messages: list[dict[str, str]] | None, message: str, stdlib: Generator, template: ChatTemplate, tmp_path: Path
) -> None:
    session = stdlib.session()
    list(session.text("import os", max_new_tokens=1))
    session.save(tmp_path / "session", messages=messages)
    with pytest.raises(SessionError, match=message):
        Chat.restored(stdlib, tmp_path / "session", template)


def test_a_chat_needs_a_template_and_a_tokenizer(generator: Generator, stdlib: Generator, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no chat template; give a chat template with --template FILE"):
        Chat(stdlib)
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        Chat(generator, path)
    assert Chat(stdlib, path).template.render([{"role": "user", "content": "x"}]) == "user: x\nassistant:"
    with pytest.raises(RequestError, match=r"the system message '\\udcff' contains bytes that are not text"):
        Chat(stdlib, path, system="\udcff")
    with pytest.raises(RequestError, match="system: found int, expected str"):
        Chat(stdlib, path, system=5)  # type: ignore[arg-type]


def test_a_template_is_a_path_or_a_chat_template(stdlib: Generator, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    _say(chat, "import os")
    chat.save(tmp_path / "chat")
    for path in (tmp_path / "template.jinja", str(tmp_path / "template.jinja")):
        for opened in (Chat(stdlib, path), Chat.restored(stdlib, tmp_path / "chat", path)):
            assert opened.template.render([{"role": "user", "content": "x"}]) == "user: x\nassistant:"
    with pytest.raises(RequestError, match="template: found bytes, expected a ChatTemplate, or the path of a file"):
        Chat(stdlib, b"template.jinja")  # type: ignore[arg-type]


def test_an_empty_text_of_a_template_is_refused(stdlib: Generator) -> None:
    chat = Chat(stdlib, ChatTemplate("", {}, "template", RequestError))
    with pytest.raises(RequestError, match=r"^template: the chat template gives no text for these messages$"):
        chat.reply("x")
    assert chat.messages == []
