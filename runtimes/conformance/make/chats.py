"""Cases of chat templates. The library transformers renders the expected texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Case = dict[str, Any]

_TOOLS = [{"type": "function", "function": {"name": "fly", "description": "Fly to a <place> & back: 東京"}}]
_QUESTION = {"role": "user", "content": "  the quick owls?\n"}
_CHATS: dict[str, Case] = {
    "one question": {"messages": [_QUESTION]},
    "a conversation": {
        "messages": [
            {"role": "system", "content": "naïve ☕"},
            _QUESTION,
            {"role": "assistant", "content": 'the "owls"'},
            {"role": "user", "content": "<|end|> the"},
        ]
    },
    "tools": {"messages": [_QUESTION], "tools": _TOOLS},
    "without the generation prompt": {"messages": [_QUESTION], "add_generation_prompt": False},
}

_PROPERTIES = {
    "to": {"type": "STRING", "description": "A <place>"},
    "Stops": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["owls", 'the "tower"']}, "nullable": True},
    "at": {"type": "OBJECT", "properties": {"hour": {"type": "NUMBER", "default": 7.5}}},
}
_DECLARED = {"name": "fly", "parameters": {"type": "OBJECT", "properties": _PROPERTIES, "required": ["to"]}}
_CALL = {"function": {"name": "fly", "arguments": {"to": "東京", "Stops": [], "at": {"hour": 9, "late": False}}}}
_GEMMA4_CHATS: dict[str, Case] = {
    **_CHATS,
    "nested tools": {
        "messages": [{"role": "developer", "content": " the\t"}, _QUESTION],
        "tools": [*_TOOLS, {"type": "function", "function": _DECLARED}],
    },
    "a call of a tool": {
        "messages": [_QUESTION, {"role": "assistant", "tool_calls": [_CALL, _CALL]}, _QUESTION],
        "tools": _TOOLS,
    },
    "a thought": {
        "messages": [
            _QUESTION,
            {"role": "assistant", "content": "<think>owls <b>?</think> the <think></think> quick "},
            _QUESTION,
        ]
    },
}


def chat_cases(name: str, bundle: Path) -> list[Case]:
    """Return the cases of a bundle with a chat template: texts, token ids, and messages that are refused."""
    template = (bundle / "chat_template.jinja").read_text()
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    settings = json.loads((bundle / "tokenizer_config.json").read_text())
    special = {token: text for token, text in settings.items() if text is not None}
    renderer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)
    cases = []
    for what, fields in (_GEMMA4_CHATS if name == "gemma4" else _CHATS).items():
        chat = {"tools": None, "add_generation_prompt": True, **fields}
        text = renderer.apply_chat_template(
            chat["messages"],
            tools=chat["tools"],
            add_generation_prompt=chat["add_generation_prompt"],
            tokenize=False,
        )
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        about = {"name": f"{name}/chat/{what}", "kind": "chat", "bundle": name}
        cases.append({**about, **chat, "expected": {"text": text, "ids": ids}})
    refused = {"messages": [_QUESTION, {"role": "system", "content": "the"}], "error": "request"}
    return [*cases, {"name": f"{name}/chat/refused messages", "kind": "chat", "bundle": name, **refused}]
