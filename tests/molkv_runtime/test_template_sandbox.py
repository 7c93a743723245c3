"""Hostile chat templates: each gives one clear error, soon and without much memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from molkv_bundle import BundleError, CheckpointError
from molkv_runtime import chat_template, template_sandbox
from molkv_runtime.chat_template import ChatTemplate

CHAT = [{"role": "user", "content": "°C"}]


def test_the_limits_allow_large_numbers_that_are_no_widths() -> None:
    template = """{% set ns = namespace(budget=32768) %}{% macro shown(n) %}{{ n }}{% endmacro %}
{{- dict(a=1234567).a + ns.budget }} {{ shown(1700000000) }} {{ nothing | default(100000) }} {{ 1234567 | round(1) }}
{{- ' {{"n": "{:,}"}} 12345'.format(1234567) }}{{ ' 12345 %s %05.1f%%' % (12345, 1) }} {{ 'a' | center(3) }}
{{- [12345] | select('gt', 12344) | list }} {{ 'b' ~ 99999 }} {{ ['c'] * -1 }}"""
    expected = '1267335 1700000000 100000 1234567 {"n": "1,234,567"} 12345 12345 12345 001.0%  a [12345] b99999 []'
    assert ChatTemplate(template, {}, "x", BundleError).render(CHAT) == expected


NOT_JINJA = "the chat template is not valid Jinja"
MAX_SIZE = 1 << 24  # less than in a program, to save time
TOO_LARGE = f"its texts and lists together have more than {MAX_SIZE} characters and items"
WIDE = "it formats a value with a width above 9999, or with a width that is an argument"
BIG = "'a' * 10**7"
REPEAT = "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = ITEM %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # unsafe attributes and unknown names
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ dict.update(messages[0], role='x') }}", "has no attribute 'update'"),
        ("{{ dict[0].mro() }}", "has no element 0"),
        ("{{ cycler.__init__.__globals__ }}", "access to attribute '__init__' of 'type' object is unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "access to attribute '__class__' of 'int' object is unsafe"),
        ("\n{{ nothing(1) }}", "(line 2: 'nothing' is undefined)"),
        ("{{ lipsum(10**9) }}", "'lipsum' is undefined"),
        ("{% include 'x' %}", "no loader for this environment"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages | tojson(indent=messages) }}", "the chat template failed"),
        # recursion
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        # doubling
        (REPEAT.replace("ITEM", "ns.x ~ ns.x"), TOO_LARGE),
        (REPEAT.replace("ITEM", "ns.x|string + ns.x|string"), TOO_LARGE),
        (REPEAT.replace("ITEM", "ns.x|string|replace('1', '11')"), TOO_LARGE),
        ("{% set ns = namespace(x='a') %}{% for i in range(99) %}"
         "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}", TOO_LARGE),
        (REPEAT.replace("ITEM", "ns.x + ns.x").replace("=1", "='a'").replace("99", "27"), TOO_LARGE),
        (REPEAT.replace("ITEM", "ns.x * 2").replace("=1", "=[1]"), TOO_LARGE),
        (REPEAT.replace("ITEM", "(ns.x + 1) * (ns.x + 1)"), "it computes with integers of more than 65536 bits"),
        ("{% for i in range(999) %}" + "a" * 99999 + "{% endfor %}", TOO_LARGE),
        ("{% for i in range(999) %}{{ messages[0].content }}{% endfor %}{{ raise_exception('late') }}", TOO_LARGE),
        ("{% macro m() %}{% for i in range(999) %}{{ messages }}{% endfor %}{{ raise_exception('late') }}{% endmacro %}"
         "{{ m() }}", TOO_LARGE),
        ("{% for i in range(999) %}{% set x = messages[0].content.upper() %}{% endfor %}", TOO_LARGE),
        ("{% for i in range(999) %}{% set x = messages[0].content | upper %}{% endfor %}", TOO_LARGE),
        ("{% for i in range(99) %}{% set x = " + BIG + " %}{% endfor %}", TOO_LARGE),
        # large results of one operation
        ("{{ 'x' * 10**9 }}", TOO_LARGE),
        ("{{ 10**9 * [1] }}", TOO_LARGE),
        ("{{ 2 ** (10**9) }}", "it computes with integers of more than 65536 bits"),
        ("{{ ('1' * 10**6) | int(base=2) // 3 }}", "it computes with integers of more than 65536 bits"),
        ("{{ '%999999999d' % 1 }}", WIDE),
        ("{{ '%*d' % (10**9, 1) }}", WIDE),
        ("{{ '%(a)9999999d' | format(a=1) }}", WIDE),
        ("{{ '{:999999999}'.format(1) }}", WIDE),
        ("{{ '{:٩٩٩٩٩٩٩٩٩}'.format(1) }}", WIDE),
        ("{{ '{a:999999999}'.format_map({'a': 1}) }}", WIDE),
        ("{{ '%(a(b))999999999d' % {'a(b)': 1} }}", WIDE),
        ("{{ '%.999999999f' % 1 }}", WIDE),
        ("{{ '{:{}}'.format(1, 10**9) }}", WIDE),
        ("{{ 'a' | center(10**9) }}", "center: found the argument 1000000000, expected at most 9999"),
        ("{{ 'a' | center(1000000000) }}", "center: found the argument 1000000000, expected at most 9999"),
        ("{{ 'a'.zfill(1000000000) }}", "zfill: found the argument 1000000000, expected at most 9999"),
        ("{{ 'ab' | map('center', 10000) | list }}", "center: found the argument 10000, expected at most 9999"),
        ("{{ 1 | round(-10**9) }}", "round: found the argument -1000000000, expected at most 9999"),
        ("{{ [1] | batch(10**9, 0) | list }}", "batch: found the argument 1000000000, expected at most 9999"),
        ("{{ [1] | slice(10**9) | list }}", "slice: found the argument 1000000000, expected at most 9999"),
        ("{{ 1 | round(10**9, 'ceil') }}", "round: found the argument 1000000000, expected at most 9999"),
        ("{{ messages | tojson(indent=10**9) }}", "tojson: found the argument 1000000000, expected at most 9999"),
    ],
)  # fmt: skip
def test_a_hostile_template_gives_one_clear_error(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 1e9)
    monkeypatch.setattr(template_sandbox, "MAX_SIZE", MAX_SIZE)
    hostile = ChatTemplate(template, {}, "bad.jinja", BundleError)
    with pytest.raises(BundleError) as caught:
        hostile.render([{"role": "user", "content": "a" * 99999}])
    assert str(caught.value).startswith("bad.jinja: the chat template failed (")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


LOOP = "{% for x in range(99999) %}"
SILENT_LOOP = "{% for x in many %}"  # without a call


@pytest.mark.parametrize(
    "template",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        "{% set many = range(99999) %}" + SILENT_LOOP * 3 + "{% endfor %}" * 3,
        "{% set many = range(99999) %}" + SILENT_LOOP * 2 + "{% for x in many if x < 0 %}" + "{% endfor %}" * 3,
        "{% set text = 'a' * 10**7 %}" + LOOP + "{% if 'ab' in text %}{% endif %}{% endfor %}",
        "{% for x in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 5 }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
        LOOP + "{% if range(9999) | map('string') | select('none') | list %}{% endif %}{% endfor %}",
        LOOP + "{% if range(99999) | sum %}{% endif %}{% endfor %}",
        LOOP + "{% set x = messages.index(2) if 2 in range(99999) | map('abs') | list else 'a' ~ 1 %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_long_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(template_sandbox, "MAX_SIZE", 1 << 60)
    with pytest.raises(CheckpointError, match=r"\(line 1: it takes more than 0.05 seconds\)$"):
        ChatTemplate(template, {}, "bad.jinja", CheckpointError).render(CHAT)


def test_a_limit_holds_for_one_rendering_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SIZE", 1000)
    template = ChatTemplate("{{ messages[0].content ~ '' }}", {}, "x", BundleError)
    for _ in range(9):
        assert template.render([{"content": "a" * 300}]) == "a" * 300
    with pytest.raises(BundleError, match="more than 1000 characters"):
        template.render([{"content": "a" * 600}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if x %}", "line 1: Unexpected end of template"),
        ("\n\n{{ x | nofilter }}", "line 3: No filter named 'nofilter'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{{ " + "1 + " * 5000 + "1 }}", "recursion"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
        ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks"),
        ("{% continue %}", "'continue' not properly in loop"),
        ("{#" * 9999, "line 1: Missing end of comment tag"),
        ("{% generation %}", "line 1: Unexpected end of template"),
    ],
)
def test_a_template_that_cannot_be_compiled_gives_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate(source, {}, "bad.jinja", CheckpointError)
    assert str(caught.value).startswith(f"bad.jinja: {NOT_JINJA} (")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_a_huge_template_is_refused() -> None:
    size = chat_template.MAX_SOURCE
    ChatTemplate("a" * size, {}, "x", BundleError)
    with pytest.raises(BundleError, match=rf"x: the chat template has {size + 1} characters, expected at most {size}"):
        ChatTemplate("a" * (size + 1), {}, "x", BundleError)


def test_jinja_is_imported_when_a_template_is_used() -> None:
    code = (
        "import sys; from molkv_runtime.chat_template import ChatTemplate, MolkvError; print('jinja2' in sys.modules);"
        "ChatTemplate('', {}, '', MolkvError); print('jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"
