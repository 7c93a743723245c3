"""Sessions: texts that grow over several calls, and that can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from molkv_bundle import TOKENIZER, Ids, NotEnoughMemoryError, RequestError, SessionFile, write_session
from molkv_runtime.checks import InOneProcess, token_ids, whole_number
from molkv_runtime.continuation import Continuation, generate
from molkv_runtime.options import Options, Token
from molkv_runtime.sequences import common_prefix

if TYPE_CHECKING:
    from molkv_runtime.generator import Generator

_FIRST_ROOM = 512  # tokens


class Session(InOneProcess):
    """A text that grows over several calls. Its KV cache is kept, so each call computes only the new tokens.

    Make sessions with `Generator.session` and `Generator.restore`. Only one thread at a time may use a session.
    """

    def __init__(self, generator: Generator) -> None:
        """Start with an empty text."""
        super().__init__()
        self._generator = generator
        self._state = generator.sequences(1, generator.room_for(_FIRST_ROOM))
        self._sound: int | None = None  # number of usable tokens in the state after a call that failed; None: all
        self._ids: Ids = np.zeros(0, np.int64)
        self._calls = 0

    @property
    def ids(self) -> list[int]:
        """The token ids of the text, with the generated tokens."""
        ids: list[int] = self._ids.tolist()
        return ids

    def stream(self, ids: Sequence[int], **options: Unpack[Options]) -> Iterator[Token]:
        """Append token ids to the text, and generate the tokens that follow.

        Args:
            ids: Token ids; the list may be empty if the text is not.
            options: See `Options`. Penalties count the text before the call as the prompt.

        Returns:
            An iterator over the new tokens, with their text if the bundle has a tokenizer. A token becomes part of the
            text when the iterator returns it. So the text keeps the tokens of an end token or a stop string.

        Raises:
            RequestError: The text is empty or too long, an id is outside the vocabulary, or an option is impossible.
                The session is then unchanged.
        """
        tokens = token_ids("ids", ids)
        self._generator.store.check_ids(tokens)
        whole = np.concatenate([self._ids, tokens.astype(np.int64)])
        if len(whole) > (context := self._generator.config.max_position_embeddings):
            raise RequestError(
                f"the session has {len(whole)} tokens with this prompt, expected at most {context} (the model's "
                "context); shorten its text with rewind"
            )
        settings = self._generator.settings(**options)
        has_tokenizer = TOKENIZER in self._generator.bundle.manifest.files
        text = self._generator.continuation(whole, settings, shows_text=has_tokenizer)
        self._grow(len(whole) + text.room)
        self._calls += 1
        return self._steps(text, self._calls)

    def _steps(self, text: Continuation, call: int) -> Iterator[Token]:
        tokens = generate(self._state, [text])
        while call == self._calls:  # after a later call, one more step would change the state under that call
            try:
                token = next(tokens, None)
            except BaseException as error:
                # After an interrupt, the expert window may be written in part. After an error, the KV cache may have
                # wrong numbers, such as NaN.
                self._sound = 0 if isinstance(error, Exception) else self._computed()
                raise
            if token is None:
                return
            self._ids = text.ids
            yield token
        if text.finish is None:
            raise RequestError("the session is in use by a later call, which ended this one")

    def _grow(self, length: int) -> None:
        """Provide room for `length` tokens, or for the whole context."""
        room, known = self._generator.room_for(length), self._state.max_length
        if room <= known and self._sound is None:
            return
        wanted = known if room <= known else self._generator.room_for(max(length, 2 * known))
        try:
            state = self._generator.sequences(1, wanted)
        except NotEnoughMemoryError:
            state = self._generator.sequences(1, max(room, known))
        state.copy(0, self._state, 0, self._computed())
        self._state, self._sound = state, None

    def text(self, text: str, **options: Unpack[Options]) -> Iterator[str]:
        """Append a text, and generate the text that follows. Return an iterator over its pieces; see `stream`.

        Special tokens, such as a token for the start of a text, are added only at the start of the session.

        Raises:
            BundleError: The bundle has no tokenizer.
        """
        [ids] = self._generator.encode([text], add_special_tokens=not len(self._ids))
        return (token.text for token in self.stream(ids, **options) if token.text)

    def rewind(self, length: int) -> None:
        """Shorten the text to its first `length` tokens.

        Raises:
            RequestError: The text is shorter than `length`.
        """
        self._calls += 1
        self._ids = self._ids[: whole_number("length", length, 0, most=len(self._ids))]

    def fork(self) -> Session:
        """Return a copy of this session. Both can then continue in different ways."""
        copy = Session(self._generator)
        copy._grow(len(self._ids))
        copy._state.copy(0, self._state, 0, self._computed())
        copy._ids = self._ids
        return copy

    def _computed(self) -> int:
        """Return the number of tokens of the text whose keys and values are in the KV cache."""
        common = common_prefix(self._ids, self._state.history(0))
        return common if self._sound is None else min(common, self._sound)

    def save(self, path: str | Path, *, messages: Sequence[Mapping[str, str]] | None = None) -> None:
        """Write the session to a file, which `Generator.restore` reads; format: docs/bundle-format.md, "Sessions".

        Args:
            path: The file. A saved session of this name is replaced when the new file is complete; other files are not.
            messages: The messages of a chat, which the file then also holds.

        Raises:
            RequestError: The text is empty, or a message is not an object of Unicode texts.
            OutputError: The file cannot be written.
        """
        if not len(self._ids):
            raise RequestError("the session is empty, expected at least one token to save")
        computed = self._computed()
        caches = {name: array[:, :computed] for name, array in self._state.caches(0).items()}
        write_session(Path(path), self._generator.bundle, self._ids, caches, messages)

    @classmethod
    def restored(cls, generator: Generator, file: SessionFile) -> Session:
        """Return the session of an open file; see `Generator.restore`."""
        session = cls(generator)
        session._grow(len(file.ids))
        session._state.load(0, file.ids[: file.length], file.read_into)
        session._ids = file.ids
        return session
