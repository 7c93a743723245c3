"""What travels beside the weights: the tokenizer, and how text is generated, so that drivers look nothing up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from molkv_bundle import (
    TOKENIZER,
    ChatTemplate,
    CheckpointError,
    Generation,
    SamplingDefaults,
    decode_json,
    read_bytes,
    sampling_number,
    shown,
)
from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.checkpoint import check_token_ids
from molkv_export.checkpoints.files import changed, file_state, refuse_pointer
from molkv_runtime import encode, open_tokenizer

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
_COPIED = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "vocab.txt")
_END = "eos_token_id"
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # transformers' where do_sample is true
_OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
_TEXT = 'def f(x):\n\treturn "°C", 1.5  # 東京 🙂'  # shows before the work that a tokenizer cannot be used


class _NamedTemplate(msgspec.Struct):
    """One of several chat templates."""

    name: str
    template: str


class Companions:
    """The companions of a checkpoint, read as soon as it is opened: they belong to the weights that it has then."""

    def __init__(self, source: Checkpoint) -> None:
        """Read and check them.

        Raises:
            CheckpointError: A file cannot be read, does not fit the model, or has an impossible value.
        """
        self._source = source
        self._paths = {name: source.folder / name for name in (*_COPIED, GENERATION_CONFIG)}
        self._states = {name: file_state(path) for name, path in self._paths.items()}
        self._read = {name: _content(path) for name, path in self._paths.items()}
        self.warnings: list[str] = []
        """What a user should know, a line each."""
        self._tokenizer = self._open_tokenizer()
        self._warn_of_files()
        self.files = {name: content for name in _COPIED if (content := self._read[name]) is not None}
        """What the bundle is to hold, by name."""
        self.generation = self._generation()
        """What drivers have to know of generating text."""

    def write(self, folder: Path) -> None:
        """Write them into a bundle."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def check(self) -> None:
        """Check that they are what they were when they were read.

        Raises:
            CheckpointError: One has another content, is gone, or is new.
        """
        for name, path in self._paths.items():
            if file_state(path) != self._states[name] and _content(path) != self._read[name]:
                raise changed(path)

    def _open_tokenizer(self) -> Tokenizer | None:
        content, path = self._read[TOKENIZER], self._paths[TOKENIZER]
        if content is None:
            return None
        tokenizer = open_tokenizer(content, path, CheckpointError)
        # A vocabulary can have holes, and what stands before every text need not be in it.
        encoded = encode(tokenizer, ["", _TEXT], path, CheckpointError)
        ids = [*tokenizer.get_vocab().values(), *encoded[0]]
        highest, vocab_size = max(ids, default=0), self._source.config.vocab_size
        if highest >= vocab_size:
            raise CheckpointError(
                f"{path}: its highest token id is {highest}, expected at most {vocab_size - 1}, since vocab_size in "
                f"config.json is {vocab_size}; give the tokenizer that the model was trained with"
            )
        return tokenizer

    def _warn_of_files(self) -> None:
        for name, path in self._paths.items():
            if path.is_symlink() and self._read[name] is None:
                self.warnings.append(
                    f"{path}: is a link that leads to no file, so the bundle goes without; restore the file or remove "
                    "the link"
                )
        others = [name for name in _OTHER_TOKENIZERS if (self._source.folder / name).exists()]
        if others and self._tokenizer is None:
            self.warnings.append(
                f"{self._source.folder}: has {' and '.join(others)} but no {TOKENIZER}, so the bundle takes token ids "
                "only; write one with transformers: AutoTokenizer.from_pretrained(FOLDER, use_fast=True)"
                ".save_pretrained(FOLDER)"
            )

    def _generation(self) -> Generation:
        content, path = self._read[GENERATION_CONFIG], self._paths[GENERATION_CONFIG]
        # Like transformers, which takes these from config.json where the file is missing.
        fields = dict(self._source.generation)
        if content is not None:
            fields = decode_json(content, dict[str, Any], path, CheckpointError)
        return Generation(
            eos_token_ids=self._end_ids(fields),
            sampling=_sampling(fields, path),
            chat_template=self._chat_template(),
        )

    def _end_ids(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the ids that end a text, of the first file that names some."""
        end = fields.get(_END)
        if end is not None:
            path, vocab_size = self._paths[GENERATION_CONFIG], self._source.config.vocab_size
            check_token_ids(_END, end, 0, vocab_size, path, CheckpointError)
        else:
            end = self._source.generation.get(_END)
        if end is None:
            end = self._end_token()
        ids = [] if end is None else end if isinstance(end, list) else [end]
        return tuple(dict.fromkeys(ids))

    def _chat_template(self) -> ChatTemplate:
        """Return the name of the file that has the chat template, or "": as transformers, which prefers the file."""
        if self._read[CHAT_TEMPLATE] is not None:
            return CHAT_TEMPLATE
        template, path = self._tokenizer_config().get("chat_template"), self._paths[TOKENIZER_CONFIG]
        if template is None or isinstance(template, str):
            return TOKENIZER_CONFIG if template else ""
        try:
            named = msgspec.convert(template, list[_NamedTemplate])
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f'{path}: chat_template is {shown(template)}, expected a text, or a list of {{"name", "template"}} '
                "with texts; correct it or remove the field"
            ) from error
        if any(each.name == "default" for each in named):
            return TOKENIZER_CONFIG
        self.warnings.append(
            f'{path}: none of its chat templates is named "default", so the bundle goes without; name the one that '
            "drivers are to take"
        )
        return ""

    def _tokenizer_config(self) -> dict[str, Any]:
        content, path = self._read[TOKENIZER_CONFIG], self._paths[TOKENIZER_CONFIG]
        return {} if content is None else decode_json(content, dict[str, Any], path, CheckpointError)

    def _end_token(self) -> int | None:
        """Return the id of the token that tokenizer_config.json names; None, with a warning: there is none."""
        token, why, path = self._tokenizer_config().get("eos_token"), "", self._paths[TOKENIZER_CONFIG]
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise CheckpointError(
                    f"{path}: eos_token is {shown(token)}, expected a token, or an object with content"
                )
            found = self._tokenizer.token_to_id(token) if self._tokenizer is not None else None
            if found is not None:
                return int(found)
            lacks = f"which {TOKENIZER} does not have" if self._tokenizer else f"but there is no {TOKENIZER}"
            why = f" ({TOKENIZER_CONFIG} names {shown(token)}, {lacks})"
        self.warnings.append(
            f"{self._source.folder}: names no token that ends a text{why}, so texts end only at the length that is "
            f"asked for; put {_END} into {GENERATION_CONFIG}"
        )
        return None


def _sampling(fields: Mapping[str, Any], path: Path) -> SamplingDefaults:
    """Resolve the fields of generation_config.json as transformers does.

    Without `do_sample` the likeliest token is chosen, whatever the other fields say; null switches a step off.

    Raises:
        CheckpointError: A field has an impossible value.
    """
    chosen = {**_OFF, "temperature": 0.0, "repetition_penalty": fields.get("repetition_penalty")}
    does_sample = fields.get("do_sample")
    if not isinstance(does_sample, bool | None):
        raise CheckpointError(
            f"{path}: do_sample is {shown(does_sample)}, expected true, false or null; correct it or remove the field"
        )
    if does_sample:
        chosen |= {name: fields.get(name, default) for name, default in _SAMPLING.items()}
    chosen = {name: _OFF[name] if value is None else value for name, value in chosen.items()}
    try:
        numbers = {
            name: sampling_number(name, value, f"{path}: {name} is {shown(value)}") for name, value in chosen.items()
        }
    except ValueError as error:
        raise CheckpointError(f"{error}; correct it or remove the field") from error
    return msgspec.convert(numbers, SamplingDefaults)


def _content(path: Path) -> bytes | None:
    """Read a file; None if there is none, or a link to nowhere."""
    if file_state(path) is None:
        return None
    refuse_pointer(path)
    return read_bytes(path, CheckpointError, "expected a readable file")
