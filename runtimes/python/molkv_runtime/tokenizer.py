"""The tokenizer of a bundle, and text out of token ids that come one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from molkv_bundle import TOKENIZER, Bundle, BundleError, MolkvError, read_bytes

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that stands for one byte, by the decoder "ByteFallback"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders make of bytes that are no character, or not yet


def open_tokenizer(content: bytes, where: Path, error: type[MolkvError]) -> Tokenizer:
    """Read a tokenizer.json.

    A file can ask for padding and truncation, which would change a prompt without a word: both are switched off.

    Args:
        content: The file.
        where: Its path, for messages.
        error: What to raise when it is not a tokenizer.
    """
    with _refused(f"{where}: is not a tokenizer", error):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], where: Path, error: type[MolkvError]) -> list[list[int]]:
    """Return the token ids of texts; `where` and `error` as in `open_tokenizer`.

    Raises:
        error: The tokenizer has no token for a part of them, or is broken in a way that only its use shows.
    """
    with _refused(f"{where}: cannot encode a text", error):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@contextmanager
def _refused(what: str, error: type[MolkvError]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:  # the library raises Exception itself, and a panic of Rust is not even that
        raise error(f"{what} ({cause})") from cause


def bundle_tokenizer(bundle: Bundle) -> Tokenizer:
    """Read the tokenizer of a bundle.

    Raises:
        BundleError: The bundle carries none, or it is damaged.
    """
    if TOKENIZER not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: carries no {TOKENIZER}, so it takes token ids only")
    path = bundle.file(TOKENIZER)
    return open_tokenizer(read_bytes(path, BundleError, "expected a tokenizer"), path, BundleError)


class TextStream:
    """The text of token ids that come one by one; a piece comes as soon as no later id can change it.

    The pieces join to what the tokenizer decodes prompt and continuation to, without special tokens, less the prompt's
    text. If the continuation makes the last bytes of the prompt unreadable, they join to what the continuation alone is
    decoded to.

    Two things keep text back: bytes that are no whole character yet, and a run of byte tokens (`<0xE4>`), which is
    decoded as a whole: one wrong byte makes all of it unreadable.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        """Start behind a prompt."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        # A decoder treats the first token of a text differently, so ids are decoded behind some that came before them.
        self._context = list(prompt_ids)
        self._context_text = self._decode(self._context)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that is certain now and was not before; often empty."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return ""
        self._held.append(token_id)
        if _BYTE.fullmatch(token):
            return ""
        text = self._held_text()
        return "" if text.endswith(_INCOMPLETE) else self._release(text)

    def finish(self) -> str:
        """Return the text that was kept back, when no more ids come."""
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
        else:  # such as a space alone, which a decoder drops at the start of a text
            self._context = self._context + self._held
            self._context_text = self._decode(self._context)
        self._held = []
        return text
