"""The JavaScript driver renders chat templates as the driver in Python does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import BundleError, RequestError
from molkv_runtime.chat_template import ChatTemplate, special_tokens
from tests.js.chat_templates import TEMPLATES, expressions
from tests.molkv_runtime.test_chat_template import CHATS, CONFIG, TOOL
from tests.molkv_runtime.test_chat_template import TEMPLATES as MORE_TEMPLATES

# What the JavaScript driver refuses on purpose says so in its message.
REFUSED = "is not supported by this driver"
CONVERSATION = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi 'there' 東京 🙂\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello", "reasoning": "why"},
    {"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "image"}]},
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "id": "abcdefghi", "function": {"name": "w", "arguments": {"é": [1, 2.5]}}}
        ],
    },
    {"role": "tool", "content": '{"t": 1.5}'},
    {"role": "assistant", "content": "fine"},
]
SHORT = [{"role": "user", "content": "Hi"}]


def _tasks(templates: list[str], chats: list[list[dict[str, Any]]], tools: list[Any]) -> list[dict[str, Any]]:
    return [
        {"template": template, "config": json.dumps(CONFIG), "messages": chat, "tools": each, "prompt": prompt}
        for template in templates
        for chat in chats
        for each in tools
        for prompt in ([True, False] if len(chats) > 1 else [True])
    ]


def _in_javascript(tasks: list[dict[str, Any]]) -> list[dict[str, str]]:
    if (build := os.environ.get("MOLKV_JS_BUILD")) is None:
        pytest.skip("MOLKV_JS_BUILD is not set to the folder .build of runtimes/js")
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    program = ["node", str(Path(build) / "render.mjs")]
    done = subprocess.run(program, input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def _in_python(task: dict[str, Any]) -> dict[str, str]:
    try:
        template = ChatTemplate(task["template"], special_tokens(CONFIG), "chat_template.jinja", BundleError)
        return {"text": template.render(task["messages"], tools=task["tools"], add_generation_prompt=task["prompt"])}
    except RequestError as error:
        return {"error": "request", "message": str(error)}
    except BundleError as error:
        return {"error": "bundle", "message": str(error)}


def _differences(tasks: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return the templates that the drivers render differently, and the number that JavaScript refuses."""
    different, refused = [], 0
    for task, found in zip(tasks, _in_javascript(tasks), strict=True):
        expected = _in_python(task)
        if found.get("error") == "bundle" and found["message"].find(REFUSED) >= 0:
            refused += "text" in expected
        elif "text" in expected and " at 0x" in expected["text"]:
            different.append(f"{task['template']}: {found}, expected a refusal of {expected}")
        elif (found.get("text"), found.get("error")) != (expected.get("text"), expected.get("error")):
            different.append(f"{task['template']}: {found}, expected {expected}")
    return different, refused


def test_real_templates_are_rendered_as_in_python() -> None:
    # JavaScript has no float 1.0.
    given = json.loads(json.dumps(list(CHATS.values())).replace("1.0", "1.25"))
    chats = [*given, CONVERSATION, CONVERSATION[1:3], CALLS, SHORT]
    templates = [*TEMPLATES.values(), *MORE_TEMPLATES.values()]
    different, refused = _differences(_tasks(templates, chats, [None, [], [TOOL, TOOL["function"]]]))
    assert different == []
    assert refused == 0


# Python's compiler warns of odd expressions, and of unknown escapes in texts.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_expressions_are_rendered_as_in_python() -> None:
    tasks = _tasks(expressions(), [CONVERSATION], [None])
    different, refused = _differences(tasks)
    assert different == []
    assert refused < 0.02 * len(tasks)
