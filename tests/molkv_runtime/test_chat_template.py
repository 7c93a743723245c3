"""Chat templates: the text is that of transformers, and a hostile template gives one clear error."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from molkv_bundle import ArgumentError, Bundle, BundleError, RequestError
from molkv_runtime.chat_template import ChatTemplate, bundle_chat_template, open_chat_template, special_tokens
from tests.manifests import edit_manifest, replace_file

# `make test-lowest` runs these tests with an old version of tokenizers, which transformers refuses.
with_transformers = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("tokenizers").split(".")[:2])) < (0, 23),
    reason="transformers needs a newer version of tokenizers",
)

BRACKETS = """
{#- Roles alternate, as in many templates that came before tools. -#}
{{- bos_token }}
{%- set ns = namespace(system='', asked=false) %}
{% if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') == ns.asked %}
        {{- raise_exception('expected user and assistant in turn, found ' ~ message['role'] + ' at ' ~ loop.index0) }}
    {%- endif %}
    {%- set ns.asked = not ns.asked %}
    {%- if loop.first and ns.system %}
        {{- '[system]' + ns.system + '\\n' }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[user]' ~ message.content | trim ~ '[/user]' }}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt and message.role == 'user' %}{{ ' ' }}{% endif %}
{%- endfor %}
"""

TOOLS = """
{%- macro header(role, name=none) -%}
    <{{ role }}{% if name is not none %} name={{ name | tojson }}{% endif %}>
{%- endmacro %}
{%- if tools is defined and tools is not none and tools | length > 0 %}
    {{- header('tools') }}
    {%- for tool in tools %}
        {%- set function = tool.function if tool.function is defined else tool %}
        {{- '\\n' ~ function.name ~ ': ' ~ function | tojson(indent=2) }}
        {%- for key, value in function.parameters.properties.items() if value is mapping %}
            {{- '\\n- %s (%s)' % (key, value.type | default('any') | upper) }}
        {%- endfor %}
    {%- endfor %}
    {{- '\\ntoday: ' ~ strftime_now('%Y') ~ eos_token }}
{%- elif tools is none %}
    {{- header('no tools') }}
{%- endif %}

{% for message in messages %}
    {% if message.content is string and '<skip>' in message.content %}
        {% continue %}
    {% endif %}
    {% if message.content == 'stop' %}
        {% break %}
    {% endif %}
{{ header(message.role, message.name | default(none)) }}
    {% if message.reasoning_content is defined %}
<think>{{ message.reasoning_content.strip('\\n') }}</think>
    {% endif %}
    {% if message.content is string %}
        {% if message.role == 'assistant' %}
            {% generation %}
{{ message.content }}{{ eos_token }}
            {% endgeneration %}
        {% else %}
{{ message.content.replace('<', '&lt;') }}
        {% endif %}
    {% elif message.content is iterable %}
        {% for part in message.content | selectattr('type', 'equalto', 'text') %}
{{ part.text | indent(2) }}{{ ', ' if not loop.last }}
        {% endfor %}
    {% endif %}
    {% for call in message.tool_calls or [] %}
{{ '{}({})'.format(call.function.name, call.function.arguments | tojson(separators=(',', ':'), sort_keys=true)) }}
    {% endfor %}
{% endfor %}
{% if add_generation_prompt %}
{{ header('assistant') -}}
{% endif %}
"""

FIELDS = """
{%- set names = ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'image_token', 'sound_token', 'extra'] -%}
{{- [bos_token, eos_token, unk_token is defined, pad_token is defined, image_token, sound_token, extra is defined] }}
{{ additional_special_tokens is defined }}{{ extra_special_tokens is defined }}{{ nothing is defined }}
{{ documents is defined }}{{ documents is none }}{{ tools is defined }}{{ tools is none }}{{ tools is iterable }}
{{ add_generation_prompt is true }}|{{ nothing }}|{{ none }}|{{ names[-1] | capitalize }}|{{ '<b>' | e ~ '<' }}
{{ messages | tojson }}{{ ', '.join(messages | map(attribute='role')) }}
{{ messages | map(attribute='role') | unique | join(', ') }} {{ (messages | last).content | string | length }}
{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys('ab', 0) }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ -7 % 4 }}{{ [1] * 2 + [3] }}
{% for message in messages recursive %}{{ loop.length }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}
{{- loop.previtem.role if loop.previtem is defined }}{{ loop(message.parts) if message.parts }}{% else %}0{% endfor %}

{%- for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a }}{{ b }}{% set c = a %}{% endfor %}{{ c is defined }}
{% generation %}{% set inner = 1 %}{{ inner }}{% endgeneration %}{{ inner is defined }}
{% set block %}  {{ messages[0].role }}  {% endset %}{{ block }}|{{ block | trim }}
{% filter upper %}{{ messages[0].role }}{% endfilter %}{% call(x) outer() %}{{ x }}{% endcall %}
{% macro outer() %}{{ caller(1) }}{% endmacro %}
"""
TEMPLATES = {
    "brackets": BRACKETS,
    "tools": TOOLS,
    "fields": FIELDS.replace("{% call(x) outer() %}{{ x }}{% endcall %}", ""),
    "calls": "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller('<') }}{% endmacro %}{% call(x) m(1) %}{{ x }}{% endcall %}",
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "special": True},
    "eos_token": "</s>",
    "pad_token": None,
    "image_token": "<img>",
    "add_bos_token": True,
    "extra_special_tokens": {"sound_token": "<snd>", "extra": "<x>"},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather in a "city" <like Köln>',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["東京", "a'b"]}, "days": {}, "odd": True},
        },
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"days": 2, "city": '東京 "x" <y>'}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi <b>there</b> & \"you\"\n 'ok' °C 東京 🙂  "}],
    "system": [
        {"role": "system", "content": "  Be <brief>.\n"},
        {"role": "user", "content": "a\nb\n"},
        {"role": "assistant", "content": " c "},
        {"role": "user", "content": ""},
    ],
    "tools": [
        {"role": "user", "content": "Weather?", "name": "Zoë"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL], "reasoning": "\nthink\n"},
        {"role": "tool", "content": '{"t": 1.5}', "tool_call_id": "1"},
        {"role": "assistant", "content": "<skip>", "thinking": "a", "reasoning_content": None},
        {"role": "assistant", "content": "fine", "reasoning_content": "b", "thinking": "a"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a\nb"}, {"type": "image"}, {"type": "text", "text": "c"}],
        },
        {"role": "user", "content": "stop"},
        {"role": "user", "content": "never"},
    ],
    "nested": [{"role": "x", "content": 1.0, "parts": [{"role": "y", "parts": [{"role": "z"}]}, {"role": "w"}]}],
}


def _folder(path: Path, template: str, config: dict[str, Any]) -> Path:
    """Write a tokenizer folder."""
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Load each template with transformers."""
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: PreTrainedTokenizerFast.from_pretrained(_folder(root / name, template, CONFIG), local_files_only=True)
        for name, template in TEMPLATES.items()
    }


def _compiled(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], special_tokens(CONFIG), f"{name}.jinja", BundleError)


def _both(references: dict[str, Any], name: str, chat: list[dict[str, Any]], tools: Any, prompt: bool) -> list[str]:
    """Return the text of transformers and the text of the driver; for chats that are refused the message."""
    from jinja2 import TemplateError

    texts = []
    try:
        texts.append(
            references[name].apply_chat_template(
                chat, tools=tools, tokenize=False, add_generation_prompt=prompt, documents=None
            )
        )
    except TemplateError as error:
        texts.append(str(error))
    try:
        texts.append(_compiled(name).render(chat, tools=tools, add_generation_prompt=prompt))
    except RequestError as refusal:
        texts.append(str(refusal.__cause__))
    return texts


@with_transformers
@pytest.mark.parametrize("tools", [None, [], [TOOL, TOOL["function"]]], ids=["none", "empty", "two"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(
    references: dict[str, Any], name: str, chat: str, tools: Any, prompt: bool
) -> None:
    expected, found = _both(references, name, CHATS[chat], tools, prompt)
    assert found == expected
    assert expected


_texts = st.text(st.characters(codec="utf-8", max_codepoint=0x3FF), max_size=12) | st.sampled_from(
    ["<skip>", "stop", "{{ 1 }}", "{% if %}", "\r\n", "</s>", "\ufeff", " \n\t"]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_texts, inner, max_size=2),
    max_leaves=4,
)
_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": _texts},
    optional={"thinking": st.none() | _texts, "reasoning": st.none() | _texts, "reasoning_content": _texts, "x": _json},
)


@with_transformers
@pytest.mark.parametrize("name", TEMPLATES)
@given(chat=st.lists(_messages, min_size=1, max_size=4), tools=st.none() | st.just([TOOL]), prompt=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_text_of_any_conversation_is_that_of_transformers(
    references: dict[str, Any], name: str, chat: list[dict[str, Any]], tools: Any, prompt: bool
) -> None:
    expected, found = _both(references, name, chat, tools, prompt)
    assert found == expected


def test_the_messages_are_written_as_the_template_says() -> None:
    chat = CHATS["system"]
    assert _compiled("brackets").render(chat) == "<s>[system]Be <brief>.\n[user]a\nb[/user] c</s>[user][/user] "
    assert _compiled("brackets").render(chat[:2]) == "<s>[system]Be <brief>.\n[user]a\nb[/user] "
    with pytest.raises(
        RequestError, match=r"^brackets.jinja: the messages do not fit the chat template \(expected user"
    ):
        _compiled("brackets").render(chat[2:])


@with_transformers
@pytest.mark.parametrize(
    "fields",
    [
        {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": None},
        {"extra_special_tokens": {"a": "<a>"}, "additional_special_tokens": {"b": "<b>"}},
        {"extra_special_tokens": [], "additional_special_tokens": {"b": "<b>"}},
        {"additional_special_tokens": ["<a>", "<b>"]},
        {"model_specific_special_tokens": {"c": "<c>"}},
        {"x_token": {"__type": "AddedToken", "content": "<x>"}},
        {"image_token": "<img>", "extra_special_tokens": {"image_token": "<image>"}, "add_bos_token": False},
    ],
)
def test_the_special_tokens_are_those_of_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = _folder(tmp_path / "tokenizer", "-", {"tokenizer_class": "PreTrainedTokenizerFast", **fields})
    expected = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True).special_tokens_map
    assert special_tokens(fields) == expected


@pytest.fixture
def copy(copied: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that makes a bundle with a chat template and a tokenizer_config.json."""

    def bundle(file: str, template: str | None, config: dict[str, Any] | None) -> Path:
        path = copied("molkv")
        if template is not None:
            replace_file(path, "chat_template.jinja", template.encode())
        if config is not None:
            replace_file(path, "tokenizer_config.json", json.dumps(config).encode())
        edit_manifest(path, lambda manifest: manifest["generation"].update(chat_template=file))
        return path

    return bundle


SHORT = "{{ bos_token }}{{ messages[0].content }}"
CHAT = [{"role": "user", "content": "°C"}]


def test_the_template_of_a_bundle_is_a_file_of_its_own(copy: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle(copy("chat_template.jinja", SHORT, {**CONFIG, "chat_template": "not this one"}))
    assert bundle_chat_template(bundle).render(CHAT) == "<s>°C"
    own = tmp_path / "own.jinja"
    own.write_bytes("é{{ eos_token }}\r\n{{ sound_token }}\r\n".encode())
    assert open_chat_template(own, bundle).render(CHAT) == "é</s>\n<snd>"
    own.write_bytes(b"\xff")
    with pytest.raises(RequestError, match=r"own.jinja: is not a chat template, expected text in UTF-8"):
        open_chat_template(own, bundle)
    own.write_text("line 1\n{% if %}")
    with pytest.raises(RequestError, match=r"own.jinja: the chat template is not valid Jinja \(line 2: "):
        open_chat_template(own, bundle)
    with pytest.raises(RequestError, match=r"missing.jinja: cannot be read"):
        open_chat_template(tmp_path / "missing.jinja", bundle)
    (bundle.path / "chat_template.jinja").write_text(SHORT.replace("0", "1"))
    with pytest.raises(BundleError, match=r"chat_template.jinja: has sha256"):
        bundle_chat_template(bundle)


def test_a_bundle_without_tokenizer_config_has_no_special_tokens(copy: Callable[..., Path]) -> None:
    assert bundle_chat_template(Bundle(copy("chat_template.jinja", SHORT, None))).render(CHAT) == "°C"


NAMED = [{"name": "rag", "template": "no"}, {"name": "default", "template": SHORT}]


@pytest.mark.parametrize("template", [SHORT, NAMED])
def test_the_template_of_a_bundle_is_a_field(copy: Callable[..., Path], template: object) -> None:
    bundle = Bundle(copy("tokenizer_config.json", None, {**CONFIG, "chat_template": template}))
    assert bundle_chat_template(bundle).render(CHAT) == "<s>°C"


@pytest.mark.parametrize("template", [SHORT, NAMED])
def test_the_template_of_the_user_is_a_field(copy: Callable[..., Path], template: object, tmp_path: Path) -> None:
    bundle, own = Bundle(copy("", None, CONFIG)), tmp_path / "tokenizer_config.json"
    own.write_text(json.dumps({"bos_token": "not this one", "chat_template": template}))
    assert open_chat_template(own, bundle).render(CHAT) == "<s>°C"


def test_a_json_file_without_a_template_is_refused(copy: Callable[..., Path], tmp_path: Path) -> None:
    bundle, own = Bundle(copy("", None, CONFIG)), tmp_path / "tokenizer_config.json"
    for content, message in [
        ("{}", 'chat_template is not a text or a list with a text named "default"$'),
        (SHORT, "is not JSON"),
        ("[]", "Expected `object`"),
    ]:
        own.write_text(content)
        with pytest.raises(RequestError, match=f"tokenizer_config.json: .*{message}"):
            open_chat_template(own, bundle)


@pytest.mark.parametrize("template", [None, 5, [], NAMED[:1], [{"name": "default"}], ["default"]])
def test_a_field_that_is_not_a_template_is_refused(copy: Callable[..., Path], template: object) -> None:
    bundle = Bundle(copy("tokenizer_config.json", None, {**CONFIG, "chat_template": template}))
    with pytest.raises(BundleError, match=r'chat_template is not a text or a list with a text named "default"; give'):
        bundle_chat_template(bundle)


def test_a_bundle_without_a_template_names_the_option(copy: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"bundle: has no chat template; give a chat template with --template FILE$"):
        bundle_chat_template(Bundle(copy("", None, None)))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: found an empty list, expected one message or more"),
        ("hello", "messages: found str, expected a list of objects"),
        (CHAT[0], "messages: found dict, expected a list of objects"),
        (["hello"], r"messages\[0\]: found str, expected an object"),
        (
            [{"content": [{"x": b"a"}]}],
            r"messages: found a value of another kind \(.*bytes.*\), expected values of JSON",
        ),
        ([{"content": float("nan")}], r"messages: found a value of another kind \(.*\), expected values of JSON"),
    ],
)
def test_messages_of_another_type_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ChatTemplate(SHORT, {}, "x", BundleError).render(messages)
    with pytest.raises(ArgumentError, match=r"tools\[0\]: found str"):
        ChatTemplate(SHORT, {}, "x", BundleError).render(CHAT, tools=["a"])  # type: ignore[list-item]


def test_messages_that_contain_themselves_are_refused() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = message
    with pytest.raises(ArgumentError, match=r"messages: found a value of another kind \(Circular reference detected\)"):
        ChatTemplate(SHORT, {}, "x", BundleError).render([message])
    nested: list[Any] = []
    for _ in range(99999):
        nested = [nested]
    with pytest.raises(
        ArgumentError, match=r"messages: found a value of another kind \(maximum recursion depth exceeded"
    ):
        ChatTemplate(SHORT, {}, "x", BundleError).render([{"content": nested}])
