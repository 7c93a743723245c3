"""Write the conformance suite again: python -m runtimes.conformance.make [FOLDER].

The bundles and the expected results come from random models with fixed seeds. Another processor or another version of
PyTorch rounds differently, so `tests/test_conformance.py` compares a newly written suite with a tolerance.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from molkv_bundle import Bundle
from runtimes.conformance.make.chats import chat_cases
from runtimes.conformance.make.damage import damage_cases, gemma4_damage_cases
from runtimes.conformance.make.living import (
    CALLED,
    SAVED,
    SCRIPTED,
    calls_case,
    logprobs_case,
    lookup_cases,
    refused_sessions,
    script_case,
    session_case,
)
from runtimes.conformance.make.models import RECIPES, write_bundle
from runtimes.conformance.make.tokens import GREEDY, Prompts, Source, golden_limit, text_cases, token_cases
from runtimes.conformance.python_driver import count_tokens

_SUITE = Path(__file__).parent.parent
_TEXTS = ["the quick brown", "naïve 東京 ☕ <tool>", " owls <|user|>  and\n"]
# The likeliest tokens after the first text are certain, also with the bundle's defaults.
_GEMMA_TEXTS = ["the owls dog", "naïve 東京 ☕ <bos>", "<|turn>user\n  owls<turn|>\n<|turn>model\n"]
Case = dict[str, Any]


def make(folder: Path) -> None:
    """Write `bundles`, `sessions` and `cases.json` to a folder."""
    known = json.loads((_SUITE / "cases.json").read_text(encoding="utf-8")) if (_SUITE / "cases.json").exists() else {}
    prompts = Prompts(known.get("cases", []))
    for part in ("bundles", "sessions"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "sessions").mkdir(parents=True)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as checkpoints:
        for name, recipe in RECIPES.items():
            bundle = folder / "bundles" / name
            source = Source(write_bundle(name, Path(checkpoints) / name, bundle), bundle)
            cases.append({"name": f"{name}/golden", "kind": "golden", "bundle": name})
            cases += token_cases(name, source, prompts)
            cases += _living(name, source, folder / "sessions")
            if recipe.tokenizer:
                texts = _GEMMA_TEXTS if recipe.tokenizer == "gemma" else _TEXTS
                cases += text_cases(name, source, prompts, texts)
    for name, recipe in RECIPES.items():
        if recipe.chat_template:
            cases += chat_cases(name, folder / "bundles" / name)
    cases += refused_sessions("molkv", "molkv-foreign", folder / "sessions")
    cases += _refusals("molkv", folder / "bundles" / "molkv")
    cases += damage_cases("molkv", folder / "bundles" / "molkv", "molkv-foreign")
    cases += gemma4_damage_cases("gemma4", folder / "bundles" / "gemma4")
    counts = [count_tokens(case) for case in cases]
    total, compared = sum(count for count, _ in counts), sum(count for _, count in counts)
    lines = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    limits = {name: golden_limit(Bundle(folder / "bundles" / name)) for name in RECIPES}
    (folder / "cases.json").write_text(
        f'{{"version": 2,\n "limits": {json.dumps(limits)},\n "cases": [\n  {lines}\n ]}}\n'
    )
    print(f"{len(RECIPES)} bundles, {len(cases)} cases; {total - compared} of {total} tokens are not compared")


def _living(name: str, source: Source, sessions: Path) -> list[Case]:
    """Return the cases of sequences that live, for the bundles that have them."""
    cases = [script_case(name, source)] if name in SCRIPTED else []
    if name in SAVED:
        cases.append(session_case(name, source, sessions))
    if name in CALLED:
        cases += [calls_case(name, source), *lookup_cases(name, source), logprobs_case(name, source)]
    return cases


def _refusals(name: str, folder: Path) -> list[Case]:
    """Return the cases of requests that a driver must refuse."""
    config = Bundle(folder).config
    size, context = config.vocab_size, config.max_position_embeddings
    requests: dict[str, Case] = {
        "no prompt": {"prompts": [[]]},
        "one empty prompt of two": {"prompts": [[1], []]},
        "an id outside the vocabulary": {"prompts": [[1, size]]},
        "a negative id": {"prompts": [[-1]]},
        "a prompt longer than the context": {"prompts": [[1] * (context + 1)]},
        "no new tokens": {"max_new_tokens": 0},
        "an empty stop string": {"stop": [""]},
        "a stop string of 10,000 characters": {"stop": ["a" * 10_000]},
        "17 stop strings": {"stop": [str(number) for number in range(17)]},
    }
    samplings: dict[str, list[Any]] = {
        "temperature": [-1, 1e7],
        "top_k": [-1],
        "top_p": [0, 1.5],
        "min_p": [-0.1, 1.5],
        "repetition_penalty": [0],
        "presence_penalty": [3],
        "frequency_penalty": [-3],
        "logit_bias": [{str(size): 1.0}, {"3": 1e7}],
        "seed": ["-1", str(2**64)],
    }
    for field, values in samplings.items():
        for value in values:
            requests[f"{field} {json.dumps(value)}"] = {"sampling": {**GREEDY, field: value}}
    found = [
        {
            "name": f"{name}/refused/{what}",
            "kind": "refused",
            "bundle": name,
            "prompts": [[1, 3, 9]],
            "max_new_tokens": 3,
            "sampling": GREEDY,
            "error": "request",
            **request,
        }
        for what, request in requests.items()
    ]
    no_tokenizer = {"name": f"{name}/refused/a text", "kind": "refused", "bundle": name, "text": "a", "error": "bundle"}
    nothing = {"name": "bytes/refused/a text of no tokens", "kind": "refused", "bundle": "bytes", "text": ""}
    context = Bundle(folder.parent / "gemma4").config.max_position_embeddings  # shorter than the model's
    too_long = {**found[0], "name": "gemma4/refused/a prompt longer than the context of the graph", "bundle": "gemma4"}
    return [
        *found,
        no_tokenizer,
        {**nothing, "error": "request"},
        {**too_long, "prompts": [[1] * (context + 1)]},
    ]


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else _SUITE)
