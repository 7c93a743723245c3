"""Cases of chat templates. The library transformers renders the expected texts."""

from __future__ import annotations

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


def chat_cases(name: str, bundle: Path) -> list[Case]:
    """Return the cases of a bundle with a chat template: texts, token ids, and messages that are refused."""
    template = (bundle / "chat_template.jinja").read_text()
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    # The settings of tokenizer_config.json.
    renderer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template)
    cases = []
    for what, fields in _CHATS.items():
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
