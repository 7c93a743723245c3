"""Chat templates: the text that a list of messages becomes (`docs/bundle-format.md`, "Chat template").

The text is the same as from transformers' `apply_chat_template`. `template_sandbox.py` limits what a template can do.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from molkv_bundle import ArgumentError, Bundle, BundleError, MolkvError, RequestError, decode_json, one_line, read_bytes

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SOURCE = 1 << 18  # characters of a template
_TOKENIZER_CONFIG = "tokenizer_config.json"
_NAMED_TOKENS = ("additional_special_tokens", "model_specific_special_tokens", "extra_special_tokens")
_HINT = "give a chat template with --template FILE"
_WRONG_FIELD = 'chat_template is not a text or a list with a text named "default"'
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same field of a message


class _RefusalError(Exception):
    """A template called `raise_exception`."""


def _raise_exception(message: object) -> NoReturn:
    raise _RefusalError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return a value as JSON. Jinja's own filter escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# Functions that transformers has in addition to Jinja's.
_FUNCTIONS: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}


class ChatTemplate:
    """A chat template, which writes a list of messages as one text with the special tokens of a model."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str, error: type[MolkvError]) -> None:
        """Compile a template.

        Args:
            source: The template, in Jinja's language.
            special_tokens: Texts of tokens by the names that the template may use, such as "bos_token".
            where: The name of the file, for messages.
            error: The exception to raise for an error of the template.

        Raises:
            error: The template is too large, or Jinja cannot compile it.
        """
        # Most programs use no chat template, so they need not wait for the import of Jinja.
        from molkv_runtime.template_sandbox import Sandbox, start_limits

        self._special_tokens, self._error = dict(special_tokens), error
        self.where = where
        """The name of the file, for messages."""
        if len(source) > MAX_SOURCE:
            raise error(f"{where}: the chat template has {len(source)} characters, expected at most {MAX_SOURCE}")
        start_limits()
        try:
            self._template: Template = Sandbox(_FUNCTIONS, {"tojson": _tojson}).from_string(source)
        except Exception as cause:  # a TemplateSyntaxError of Jinja, or an error of Python's compiler
            raise error(f"{where}: the chat template is not valid Jinja ({_described(cause)})") from cause

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the text of a conversation. Encode the text without adding special tokens.

        Args:
            messages: The messages, oldest first, as values of JSON. Most templates need the fields "role" and
                "content".
            tools: JSON schemas of the functions that the model may call.
            add_generation_prompt: Whether the text ends with the beginning of the model's answer.

        Raises:
            ArgumentError: The arguments are not lists of objects of JSON, or there is no message.
            RequestError: The template refuses the messages.
            error: The template has an error, or does too much work. `error` is the exception of the constructor.
        """
        from molkv_runtime.template_sandbox import start_limits

        variables = {
            **self._special_tokens,
            "messages": [_with_reasoning(message) for message in _objects("messages", messages)],
            "tools": None if tools is None else _objects("tools", tools),
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        if not variables["messages"]:
            raise ArgumentError("messages", "an empty list", "one message or more")
        start_limits()
        try:
            return self._template.render(variables)
        except _RefusalError as refusal:
            raise RequestError(
                f"{self.where}: the messages do not fit the chat template ({one_line(refusal)})"
            ) from refusal
        except Exception as cause:  # a template is a program, so it can raise any exception
            raise self._error(f"{self.where}: the chat template failed ({_described(cause)})") from cause


def bundle_chat_template(bundle: Bundle) -> ChatTemplate:
    """Return the chat template of a bundle.

    Raises:
        BundleError: The bundle has no chat template, or its template is damaged.
    """
    name = bundle.manifest.generation.chat_template
    if not name:
        raise BundleError(f"{bundle.where}: has no chat template; {_HINT}")
    config, path = _tokenizer_config(bundle), f"{bundle.where}/{name}"
    if name == _TOKENIZER_CONFIG:
        if (source := _template_field(config)) is None:
            raise BundleError(f"{path}: {_WRONG_FIELD}; {_HINT}")
    else:
        source = _read_text(bundle.file(name), BundleError)
    return ChatTemplate(source, special_tokens(config), path, BundleError)


def open_chat_template(path: Path, bundle: Bundle) -> ChatTemplate:
    """Return the chat template in a file of the user, with the special tokens of a bundle.

    Args:
        path: A file with a template, or a JSON file such as tokenizer_config.json, whose name ends with ".json". Its
            field "chat_template" is then the template.
        bundle: The bundle.

    Raises:
        RequestError: The file cannot be read, or has no chat template.
        BundleError: tokenizer_config.json of the bundle is damaged.
    """
    source: str | None
    if path.suffix == ".json":
        if (source := _template_field(_read_json(path, RequestError))) is None:
            raise RequestError(f"{path}: {_WRONG_FIELD}")
    else:
        source = _read_text(path, RequestError)
    return ChatTemplate(source, special_tokens(_tokenizer_config(bundle)), str(path), RequestError)


def _template_field(config: Mapping[str, Any]) -> str | None:
    """Return the chat template in the fields of tokenizer_config.json; None: there is none."""
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [each for each in source if isinstance(each, dict) and each.get("name") == "default"]
        source = named[-1].get("template") if named else None
    return source if isinstance(source, str) else None


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a chat template may use, by name, from the fields of tokenizer_config.json.

    As in transformers, these are the fields whose names end with "_token", and the tokens in objects whose keys are the
    names of tokens (`_NAMED_TOKENS`). A template cannot use a list of tokens, since its tokens have no names.
    """
    found = {name: value for name, value in config.items() if name.endswith("_token")}
    for field in _NAMED_TOKENS:
        if isinstance(config.get(field), dict):
            found |= config[field]
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _tokenizer_config(bundle: Bundle) -> dict[str, Any]:
    if _TOKENIZER_CONFIG not in bundle.manifest.files:
        return {}
    return _read_json(bundle.file(_TOKENIZER_CONFIG), BundleError)


def _read_json(path: Path, error: type[MolkvError]) -> dict[str, Any]:
    return decode_json(read_bytes(path, error, "expected a JSON file"), dict[str, Any], path, error)


def _read_text(path: Path, error: type[MolkvError]) -> str:
    try:
        return read_bytes(path, error, "expected a chat template").decode()
    except UnicodeDecodeError as cause:
        raise error(f"{path}: is not a chat template, expected text in UTF-8 ({cause})") from cause


def _described(cause: Exception) -> str:
    """Return the line of the template and the message of an error."""
    line = None if isinstance(cause, SyntaxError) else getattr(cause, "lineno", None)  # not the line of Jinja's code
    for frame, number in traceback.walk_tb(cause.__traceback__):
        if frame.f_code.co_filename == "<template>":
            line = number
    message = one_line(cause) or type(cause).__name__
    return f"line {line}: {message}" if line else message


def _objects(name: str, values: Any) -> list[dict[str, Any]]:
    """Return a copy of a list of objects. The template gets no object of the caller, since it could call its methods.

    Raises:
        ArgumentError: The value is not a list of objects of JSON.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise ArgumentError(name, type(values).__name__, "a list of objects")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ArgumentError(f"{name}[{index}]", type(value).__name__, "an object")
    try:
        copied: list[dict[str, Any]] = json.loads(json.dumps([dict(value) for value in values], allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise ArgumentError(name, f"a value of another kind ({one_line(cause)})", "values of JSON") from cause
    return copied


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as transformers passes it to a template.

    Fields that are None are left out. The model's reasoning gets every name that templates read.
    """
    fields = {name: value for name, value in message.items() if value is not None}
    for name in _REASONING:
        if name in fields:
            return {"thinking": fields[name], **fields, "reasoning_content": fields[name]}
    return fields
