"""The tokenizer of a bundle, the conversion of a stream of token ids to text, and the strings that end a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from molkv_bundle import TOKENIZER, ArgumentError, Bundle, BundleError, MolkvError, RequestError, is_unicode, read_bytes

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that the decoder "ByteFallback" decodes to one byte
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoders return this for bytes that are not a complete character
_MOST_STOPS, _LONGEST_STOP = 16, 1_000


def open_tokenizer(content: bytes, where: Path, error: type[MolkvError]) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, without padding and truncation, which would silently change a prompt.

    Args:
        content: The content of the file.
        where: The path of the file, for messages.
        error: The exception to raise if the content is not a tokenizer.
    """
    with _refused(f"{where}: is not a tokenizer", error):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    where: Path | str,
    error: type[MolkvError],
    *,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Return the token ids of each text.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        where: The path of the tokenizer's file, for messages.
        error: The exception to raise if the tokenizer has a defect.
        add_special_tokens: Whether to add the special tokens of the tokenizer's post-processor, such as a token at the
            start of a text.

    Raises:
        error: The tokenizer has no token for a part of a text, or has a defect that `open_tokenizer` does not detect.
    """
    with _refused(f"{where}: cannot encode a text", error):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)]


@contextmanager
def _refused(what: str, error: type[MolkvError]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:  # the library raises plain Exception; a panic in Rust is a BaseException
        raise error(f"{what} ({cause})") from cause


def bundle_tokenizer(bundle: Bundle) -> Tokenizer:
    """Return the tokenizer of a bundle.

    Raises:
        BundleError: The bundle has no tokenizer, or the tokenizer is damaged.
    """
    if TOKENIZER not in bundle.manifest.files:
        raise BundleError(f"{bundle.where}: has no {TOKENIZER}, so prompts must be token ids")
    path = bundle.file(TOKENIZER)
    return open_tokenizer(read_bytes(path, BundleError, "expected a tokenizer"), path, BundleError)


class TextStream:
    """A converter from token ids, one at a time, to pieces of text. A piece is returned once no later id can change it.

    All pieces together are the decoded text of prompt and continuation, without the text of the prompt and without
    special tokens. One exception: if the continuation changes how the end of the prompt is decoded (for example, if it
    completes a character), the pieces together are the decoded text of the continuation alone.

    Two kinds of text are held back: the bytes of an incomplete character, and runs of byte tokens (`<0xE4>`). A run of
    byte tokens is decoded as a whole, so a single wrong byte makes all of the run invalid.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        """Start after a prompt."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        # A decoder treats the first token of a text differently, so new ids are decoded together with earlier ids.
        self._context = list(prompt_ids)
        self._context_text = self._decode(self._context)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Add a token id. Return the text that this id completes, often an empty text."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return ""
        self._held.append(token_id)
        if _BYTE.fullmatch(token):
            return ""
        text = self._held_text()
        return "" if text.endswith(_INCOMPLETE) else self._release(text)

    def finish(self) -> str:
        """Return the text that is still held back. Call this after the last id."""
        return self._release(self._held_text()) if self._held else ""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _held_text(self) -> str:
        text = self._decode(self._context + self._held)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        return self._decode(self._held)

    def _release(self, text: str) -> str:
        own_text = self._decode(self._held)
        if own_text:
            self._context, self._context_text = self._held, own_text
        else:  # without earlier ids, they decode to no text: e.g. a space, which decoders drop at the start of a text
            self._context = self._context + self._held
            self._context_text = self._decode(self._context)
        self._held = []
        return text


class StopStrings:
    """A filter for the pieces of a text. It ends the text before the first stop string, and holds back its beginnings.

    The first stop string is the one that is complete first. If several are complete at the same character, it is the
    longest. So the result does not depend on the borders of the pieces.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Check the strings: at most 16 strings of 1 to 1,000 characters.

        Raises:
            RequestError: There are too many strings, or a string is empty, too long, or not a string.
        """
        if isinstance(strings, str):
            raise RequestError("stop: found a single string, expected a list of strings")
        if not isinstance(strings, Iterable):
            raise ArgumentError("stop", type(strings).__name__, "a list of strings")
        self.strings = tuple(strings)
        """The stop strings."""
        if len(self.strings) > _MOST_STOPS:
            raise ArgumentError("stop", f"{len(self.strings)} strings", f"at most {_MOST_STOPS}")
        for string in self.strings:
            if not isinstance(string, str):
                raise ArgumentError("stop", f"an item of type {type(string).__name__}", "strings")
            if not is_unicode(string):
                raise ArgumentError("stop", repr(string[:20]), "Unicode text")
            if not 0 < len(string) <= _LONGEST_STOP:
                raise ArgumentError("stop", f"a string of {len(string)} characters", f"1 to {_LONGEST_STOP} characters")
        self._held = ""
        self.found = False
        """Whether a stop string is complete."""

    def push(self, piece: str) -> str:
        """Add a piece. Return the text that can no longer be a part of a stop string, often an empty text."""
        if self.found or not self.strings:
            return "" if self.found else piece
        text = self._held + piece
        places = [(text.index(string) + len(string), -len(string)) for string in self.strings if string in text]
        if places:
            end, negative = min(places)
            self.found, self._held = True, ""
            return text[: end + negative]
        held = max(_overlap(text, string) for string in self.strings)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that is still held back. Call this when the text has ended."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(string[:count])), 0)
