"""The files beside the weights that drivers need: tokenizer, chat template and settings for text generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from molkv_bundle import (
    TOKENIZER,
    ChatTemplateFile,
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
from molkv_runtime import ChatTemplate, encode, open_tokenizer

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
_COPIED = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "vocab.txt")
_END = "eos_token_id"
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # transformers' defaults with do_sample
_OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
_TEXT = 'def f(x):\n\treturn "°C", 1.5  # 東京 🙂'  # encoded before the export starts, to test the tokenizer


class _NamedTemplate(msgspec.Struct):
    """An entry of a list of chat templates in tokenizer_config.json."""

    name: str
    template: str


class Companions:
    """The companions of a checkpoint: the files beside the weights that drivers need.

    The files are read when the export starts, so that they belong to the same state of the checkpoint as the weights.
    """

    def __init__(self, source: Checkpoint, begins_with_bos: bool) -> None:
        """Read and check the companions.

        Args:
            source: The checkpoint.
            begins_with_bos: Whether the model expects that each text begins with its beginning-of-text token.

        Raises:
            CheckpointError: A file cannot be read, does not fit the model, or has an impossible value.
        """
        self._source = source
        self._paths = {name: source.folder / name for name in (*_COPIED, GENERATION_CONFIG)}
        self._states = {name: file_state(path) for name, path in self._paths.items()}
        self._read = {name: _content(path) for name, path in self._paths.items()}
        self.warnings: list[str] = []
        """Warnings for the user, one line each."""
        self._tokenizer = self._open_tokenizer()
        self._warn_of_files()
        if begins_with_bos and self._tokenizer is not None:
            self._warn_of_bos(self._tokenizer)
        self.files = {name: content for name in _COPIED if (content := self._read[name]) is not None}
        """Contents of the files that the bundle gets, by name."""
        self.generation = self._generation()
        """Settings for text generation, for the manifest."""
        self.warnings = [source.named(warning) for warning in self.warnings]

    def write(self, folder: Path) -> None:
        """Write the files into a bundle."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def check(self) -> None:
        """Check that the files have not changed since they were read.

        Raises:
            CheckpointError: The content of a file has changed, or a file was removed or added.
        """
        for name, path in self._paths.items():
            if file_state(path) != self._states[name] and _content(path) != self._read[name]:
                raise changed(path)

    def _open_tokenizer(self) -> Tokenizer | None:
        content, path = self._read[TOKENIZER], self._paths[TOKENIZER]
        if content is None:
            return None
        tokenizer = open_tokenizer(content, path, CheckpointError)
        # The ids of encoded texts are checked, too: the tokenizer may add tokens that are not in its vocabulary. The
        # largest id is compared, not the number of ids, since a vocabulary can have gaps.
        encoded = encode(tokenizer, ["", _TEXT], path, CheckpointError)
        ids = [*tokenizer.get_vocab().values(), *encoded[0]]
        highest, vocab_size = max(ids, default=0), self._source.config.vocab_size
        if highest >= vocab_size:
            raise CheckpointError(
                f"{path}: its highest token id is {highest}, expected at most {vocab_size - 1}, since vocab_size in "
                f"config.json is {vocab_size}; use the tokenizer that the model was trained with"
            )
        return tokenizer

    def _warn_of_files(self) -> None:
        for name, path in self._paths.items():
            if path.is_symlink() and self._read[name] is None:
                self.warnings.append(
                    f"{path}: is a broken link, so the bundle will not have this file; restore the file or remove the "
                    "link"
                )
        others = [name for name in _OTHER_TOKENIZERS if (self._source.folder / name).exists()]
        if others and self._tokenizer is None:
            self.warnings.append(
                f"{self._source.folder}: has {' and '.join(others)} but no {TOKENIZER}, so the bundle will take only "
                f"token ids, no text; write {TOKENIZER} with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
            )

    def _warn_of_bos(self, tokenizer: Tokenizer) -> None:
        bos = self._source.generation.get("bos_token_id")
        if isinstance(bos, int) and tokenizer.encode("").ids[:1] != [bos]:
            token = tokenizer.id_to_token(bos) or f"the token {bos}"
            self.warnings.append(
                f"{self._paths[TOKENIZER]}: does not begin texts with {token}, which the model expects; begin prompts "
                "with it, or correct the file"
            )

    def _generation(self) -> Generation:
        content, path = self._read[GENERATION_CONFIG], self._paths[GENERATION_CONFIG]
        # Like transformers, use the fields of config.json if generation_config.json is missing.
        fields = dict(self._source.generation)
        if content is not None:
            fields = decode_json(content, dict[str, Any], path, CheckpointError)
        return Generation(
            eos_token_ids=self._end_ids(fields),
            sampling=_sampling(fields, path),
            chat_template=self._chat_template(),
        )

    def _end_ids(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the token ids that end a text.

        The files are read in the order generation_config.json, config.json, tokenizer_config.json. The first file that
        names an end token is used.
        """
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

    def _chat_template(self) -> ChatTemplateFile:
        """Return the name of the file with the chat template; "" if there is none.

        Like transformers, prefer chat_template.jinja to tokenizer_config.json.
        """
        content = self._read[CHAT_TEMPLATE]
        if content is not None:
            self._warn_of_template(content, self._paths[CHAT_TEMPLATE])
            return CHAT_TEMPLATE
        template, path = self._tokenizer_config().get("chat_template"), self._paths[TOKENIZER_CONFIG]
        if template is None or isinstance(template, str):
            if not template:
                return ""
            self._warn_of_template(template, path)
            return TOKENIZER_CONFIG
        try:
            named = msgspec.convert(template, list[_NamedTemplate])
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"{path}: chat_template is {shown(template)}, expected a string, or a list of objects with strings "
                '"name" and "template"; correct it or remove the field'
            ) from error
        default = {each.name: each.template for each in named}.get("default")
        if default is not None:
            self._warn_of_template(default, path)
            return TOKENIZER_CONFIG
        self.warnings.append(
            f'{path}: no chat template is named "default", so the bundle will have no chat template; give this name '
            "to the template that drivers should use"
        )
        return ""

    def _warn_of_template(self, template: str | bytes, path: Path) -> None:
        """Add a warning if the driver cannot compile a template. A bundle can be used without its template."""
        try:
            text = template.decode() if isinstance(template, bytes) else template
            ChatTemplate(text, {}, str(path), CheckpointError)
        except UnicodeDecodeError as error:
            self.warnings.append(f"{path}: is not a chat template, expected text in UTF-8 ({error})")
        except CheckpointError as error:
            self.warnings.append(f"{error}; correct it, since a chat with the bundle needs it")

    def _tokenizer_config(self) -> dict[str, Any]:
        content, path = self._read[TOKENIZER_CONFIG], self._paths[TOKENIZER_CONFIG]
        return {} if content is None else decode_json(content, dict[str, Any], path, CheckpointError)

    def _end_token(self) -> int | None:
        """Return the id of the eos_token in tokenizer_config.json; without such a token, add a warning."""
        token, why, path = self._tokenizer_config().get("eos_token"), "", self._paths[TOKENIZER_CONFIG]
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise CheckpointError(
                    f"{path}: eos_token is {shown(token)}, expected a string, or an object with a string 'content'"
                )
            found = self._tokenizer.token_to_id(token) if self._tokenizer is not None else None
            if found is not None:
                return int(found)
            lacks = f"which {TOKENIZER} does not have" if self._tokenizer else f"but there is no {TOKENIZER}"
            why = f" ({TOKENIZER_CONFIG} names {shown(token)}, {lacks})"
        self.warnings.append(
            f"{self._source.folder}: has no end-of-text token{why}, so generation stops only at the maximum number of "
            f"tokens; set {_END} in {GENERATION_CONFIG}"
        )
        return None


def _sampling(fields: Mapping[str, Any], path: Path) -> SamplingDefaults:
    """Return the sampling defaults that follow from the fields of generation_config.json, as in transformers.

    Without `do_sample`, the likeliest token is chosen, and `repetition_penalty` is the only other field that has an
    effect. A field with the value null switches its step of sampling off.

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
    """Return the content of a file; None if it is missing or a broken link."""
    if file_state(path) is None:
        return None
    refuse_pointer(path)
    return read_bytes(path, CheckpointError, "expected a readable file")
