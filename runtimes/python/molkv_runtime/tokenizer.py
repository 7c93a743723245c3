"""The tokenizer of a bundle, and the conversion of a stream of token ids to text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from molkv_bundle import TOKENIZER, Bundle, BundleError, MolkvError, read_bytes

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that the decoder "ByteFallback" decodes to one byte
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoders return this for bytes that are not a complete character


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


def encode(tokenizer: Tokenizer, texts: Sequence[str], where: Path, error: type[MolkvError]) -> list[list[int]]:
    """Return the token ids of each text. For `where` and `error` see `open_tokenizer`.

    Raises:
        error: The tokenizer has no token for a part of a text, or has a defect that `open_tokenizer` does not detect.
    """
    with _refused(f"{where}: cannot encode a text", error):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


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
        raise BundleError(f"{bundle.path}: has no {TOKENIZER}, so prompts must be token ids")
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
