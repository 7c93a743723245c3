"""Conversations: messages that a chat template writes as the text of a session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from molkv_bundle import ArgumentError, Ids, RequestError, SessionError, SessionFile, is_unicode
from molkv_runtime.chat_template import ChatTemplate, bundle_chat_template, open_chat_template
from molkv_runtime.generator import Generator
from molkv_runtime.options import Finish, Options, Token
from molkv_runtime.sequences import common_prefix
from molkv_runtime.session import Session

_Message = dict[str, str]


class Chat:
    """A conversation with a model. Its KV cache is kept, so each answer computes only the new part of the conversation.

    Only one thread at a time may use a Chat.
    """

    def __init__(
        self, generator: Generator, template: ChatTemplate | str | Path | None = None, *, system: str = ""
    ) -> None:
        """Start a conversation.

        Args:
            generator: The model.
            template: The chat template, or the path of a file with a chat template: a file in the language Jinja, or a
                tokenizer_config.json. Default: that of the bundle.
            system: The system message, which tells the model how to answer; default: none.

        Raises:
            BundleError: The bundle has no tokenizer or no chat template, or one of them is damaged.
            RequestError: The file has no chat template, the system message is not Unicode text, or an argument has a
                wrong type.
        """
        _check_text("system", "the system message", system)
        if template is None:
            template = bundle_chat_template(generator.bundle)
        elif isinstance(template, str | Path):
            template = open_chat_template(Path(template), generator.bundle)
        elif not isinstance(template, ChatTemplate):
            raise ArgumentError("template", type(template).__name__, "a ChatTemplate, or the path of a file with one")
        generator.encode([system])  # raises if the bundle has no tokenizer
        self.template: ChatTemplate = template
        """The chat template of the conversation."""
        self.messages: list[_Message] = [{"role": "system", "content": system}] if system else []
        """The messages, oldest first, each with "role" and "content"."""
        self.finish: Finish = None
        """The reason why the last answer ended; None if it was stopped early."""
        self.new_tokens = 0
        """The number of tokens of the last answer."""
        self._generator, self._session = generator, generator.session()

    def reply(self, content: str, **options: Unpack[Options]) -> Iterator[str]:
        """Send a message of the user, and generate the answer.

        The message and the answer are added to `messages` when the iterator is first used. If the caller stops early,
        `messages` keeps the part of the answer that was generated. After an error, the conversation is as before.

        Args:
            content: The user's message.
            options: See `Options`.

        Returns:
            An iterator over the pieces of the answer; see `Generator.stream_text`.

        Raises:
            RequestError: The message is not Unicode text, the conversation is too long for the model's context, the
                chat template refuses the messages or gives no text for them, or an option is impossible.
        """
        _check_text("content", "the message", content)  # an error quotes the message, not the text of the template
        question = {"role": "user", "content": content}
        ids = self._encoded([*self.messages, question], add_generation_prompt=True)
        self._generator.settings(**options)
        if not len(ids):
            raise RequestError(f"{self.template.where}: the chat template gives no text for these messages")
        if len(ids) > (context := self._generator.config.max_position_embeddings):
            raise RequestError(
                f"the conversation has {len(ids)} tokens with this message, expected at most {context} (the model's "
                "context); shorten the message, or remove messages with undo or clear (/undo, /clear in the command "
                "chat)"
            )
        known = max(0, min(self._known(ids), len(ids) - 1))
        self._session.rewind(known)
        return self._answer(question, known, self._session.stream(ids[known:].tolist(), **options))

    def _answer(self, question: _Message, known: int, tokens: Iterator[Token]) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages += [question, answer]
        self.finish, self.new_tokens = None, 0
        try:
            for token in tokens:
                answer["content"] += token.text
                self.finish = token.finish
                self.new_tokens += 1
                if token.text:
                    yield token.text
        except Exception:
            if self.messages and self.messages[-1] is answer:
                del self.messages[-2:]
                self._session.rewind(known)
            raise

    def _encoded(self, messages: Sequence[_Message], *, add_generation_prompt: bool) -> Ids:
        text = self.template.render(messages, add_generation_prompt=add_generation_prompt)
        return np.array(self._generator.encode([text], add_special_tokens=False)[0], np.int64)

    def _known(self, ids: Ids) -> int:
        """Return the number of first token ids that the session also begins with."""
        return common_prefix(np.array(self._session.ids, np.int64), ids)

    def undo(self) -> None:
        """Remove the last message of the user, and the answer to this message.

        Raises:
            RequestError: There is no message of the user.
        """
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not users:
            raise RequestError("there is no message to remove, expected a message of the user and its answer")
        kept = self.messages[: users[-1]]
        known = self._known(self._encoded(kept, add_generation_prompt=False)) if len(users) > 1 else 0
        self._session.rewind(known)
        del self.messages[users[-1] :]

    def clear(self) -> None:
        """Remove all messages except the system message."""
        self._session.rewind(0)
        self.messages[:] = [message for message in self.messages[:1] if message["role"] == "system"]

    def save(self, path: str | Path) -> None:
        """Write the conversation and its KV cache to a file, which `restored` reads.

        Raises:
            RequestError: There is no answer yet.
            OutputError: The file cannot be written.
        """
        if not self._session.ids:
            raise RequestError("there is no answer to save yet")
        self._session.save(path, messages=self.messages)

    @classmethod
    def restored(
        cls, generator: Generator, path: str | Path, template: ChatTemplate | str | Path | None = None
    ) -> Chat:
        """Return the conversation that `save` wrote to a file.

        Args:
            generator: The model. It must use the same bundle and profile as the saved conversation.
            path: The file.
            template: As in the constructor.

        Raises:
            SessionError: The file is damaged, is not a conversation, or belongs to another bundle or graph.
            BundleError, RequestError: See the constructor.
        """
        file = SessionFile(Path(path), generator.bundle)
        if file.messages is None:
            raise SessionError(f"{path}: messages: not found, expected a list; the file is a session without a chat")
        for index, message in enumerate(file.messages):
            for field in ("role", "content"):
                if field not in message:
                    raise SessionError(f"{path}: messages[{index}]: found no {field!r}, expected 'role' and 'content'")
        chat = cls(generator, template)
        chat._session, chat.messages = Session.restored(generator, file), file.messages
        return chat


def _check_text(argument: str, what: str, text: object) -> None:
    """Check the text of a message.

    Args:
        argument: The name of the argument, for the message.
        what: A noun for the text, for the message.
        text: The value to check, of any type.

    Raises:
        RequestError: The value is not a str, or contains characters that UTF-8 does not have (surrogates).
    """
    if not isinstance(text, str):
        raise ArgumentError(argument, type(text).__name__, "str")
    if not is_unicode(text):
        raise RequestError(f"{what} {text[:20]!r} contains bytes that are not text, expected UTF-8")
