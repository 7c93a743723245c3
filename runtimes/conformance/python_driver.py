"""Run the conformance suite with the Python driver: .venv/bin/python runtimes/conformance/python_driver.py [FOLDER].

The program prints a line for each case. The last line has the number of passed cases and the number of tokens that were
not compared. The exit code is 1 if a case failed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molkv_bundle import BundleError, ProviderError, RequestError
from molkv_runtime import Generator, Sampling, Token, bundle_chat_template, selftest

Case = dict[str, Any]
_KINDS = {BundleError: "bundle", RequestError: "request", ProviderError: "provider"}


class Suite:
    """The cases of a folder, and the generators of its bundles, which are opened on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        self.cases: list[Case] = content["cases"]
        self.limits: dict[str, float] = content["limits"]
        self._open: dict[str, Generator] = {}

    def run(self, case: Case) -> str:
        """Run a case. Return a description of the failure, or an empty text if the case passed."""
        return {
            "golden": self._golden,
            "tokens": self._tokens,
            "text": self._text,
            "refused": self._refused,
            "damage": self._damage,
            "sequences": self._sequences,
            "calls": self._calls,
            "session": self._session,
            "session-refused": self._session_refused,
            "chat": self._chat,
        }[case["kind"]](case)

    def _generator(self, case: Case) -> Generator:
        name = case["bundle"]
        if name not in self._open:
            self._open[name] = Generator(self.folder / "bundles" / name)
        return self._open[name]

    def _golden(self, case: Case) -> str:
        return "; ".join(selftest(self.folder / "bundles" / case["bundle"]).failures)

    def _tokens(self, case: Case) -> str:
        found: list[list[Token]] = [[] for _ in case["prompts"]]
        for token in _stream(self._generator(case), case):
            found[token.sequence].append(token)
        wrong = list(map(_difference, range(len(found)), map(_result, found), case["expected"]))
        if "logprobs" in case:
            limit = 2 * self.limits[case["bundle"]]
            wrong += [_far(tokens, each, limit) for tokens, each in zip(found, case["expected"], strict=True)]
        return "; ".join(filter(None, wrong))

    def _text(self, case: Case) -> str:
        generator, expected = self._generator(case), case["expected"]
        if generator.tokenizer.encode(case["prompt"]).ids != case["prompt_ids"]:
            return f"the token ids of the prompt differ, expected {case['prompt_ids']}"
        options = {
            "max_new_tokens": case["max_new_tokens"],
            "sampling": _sampling(case),
            "stop": case.get("stop", []),
        }
        found = _result(list(generator.stream([case["prompt_ids"]], **options)))
        pieces = list(generator.text(case["prompt"], **options))
        if expected["compared"] == len(expected["ids"]) and pieces != expected["pieces"]:
            return f"the pieces are {pieces}, expected {expected['pieces']}"
        return _difference(0, found, expected)

    def _refused(self, case: Case) -> str:
        def request() -> None:
            generator = self._generator(case)
            list(generator.text(case["text"]) if "text" in case else _stream(generator, case))

        return _expect(case["error"], request)

    def _sequences(self, case: Case) -> str:
        """Run a script on one `Sequences` object. Compare the logit of the likeliest token after each step."""
        state = self._generator(case).sequences(case["batch_size"])
        operations: dict[str, Callable[[Case], Any]] = {
            "prefill": lambda step: state.prefill(step["sequence"], step["ids"]),
            "decode": lambda step: state.decode(step["ids"], np.array(step["active"])),
            "rewind": lambda step: state.rewind(step["sequence"], step["length"]),
            "fork": lambda step: state.fork(step["sequence"]),
        }
        for number, step in enumerate(case["steps"]):
            run, place = partial(operations[step["do"]], step), f"step {number} ({step['do']})"
            if "error" in step:
                if wrong := _expect(step["error"], run):
                    return f"{place}: {wrong}"
                continue
            found = run()
            if step["do"] == "fork" and found != step["copy"]:
                return f"{place}: found the copy {found}, expected {step['copy']}"
            for sequence, expected in enumerate(step.get("logits", [step.get("logit")])):
                if expected and abs(found[sequence][int(expected[0])] - expected[1]) > self.limits[case["bundle"]]:
                    return f"{place}: found the logit {found[sequence][int(expected[0])]}, expected {expected}"
        return ""

    def _calls(self, case: Case) -> str:
        """Run calls one after the other with one generator, which keeps what it has computed."""
        generator = Generator(self.folder / "bundles" / case["bundle"])
        for number, call in enumerate(case["calls"]):
            found = _result(list(_stream(generator, call)))
            if wrong := _difference(0, found, call["expected"][0]):
                return f"call {number}: {wrong}"
        return ""

    def _session(self, case: Case) -> str:
        """Continue a saved session; then go back, save it with this driver, and continue the new file."""
        generator = self._generator(case)
        with tempfile.TemporaryDirectory() as place:
            path, own = self.folder / "sessions" / case["session"], Path(place) / "own.safetensors"
            for file in (path, own):
                session = generator.restore(file)
                if session.ids != case["ids"]:
                    return f"the session has the ids {session.ids}, expected {case['ids']}"
                options = {"max_new_tokens": case["max_new_tokens"], "sampling": _sampling(case)}
                tokens = list(session.stream(case["then"], stop_ids=[], logprobs=case["logprobs"], **options))
                wrong = _difference(0, _result(tokens), case["expected"])
                if wrong := wrong or _far(tokens, case["expected"], 2 * self.limits[case["bundle"]]):
                    return f"{file.name}: {wrong}"
                session.rewind(len(case["ids"]))
                session.save(own)
        return ""

    def _session_refused(self, case: Case) -> str:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / case["session"]
            shutil.copyfile(self.folder / "sessions" / case["session"], path)
            for patch in case["patches"]:
                _patch(path, patch, path)
            return _expect(case["error"], lambda: self._generator(case).restore(path))

    def _chat(self, case: Case) -> str:
        generator = self._generator(case)
        template = bundle_chat_template(generator.bundle)
        options = {"tools": case.get("tools"), "add_generation_prompt": case.get("add_generation_prompt", True)}
        if "error" in case:
            return _expect(case["error"], lambda: template.render(case["messages"], **options))
        text = template.render(case["messages"], **options)
        found = {"text": text, "ids": generator.encode([text], add_special_tokens=False)[0]}
        return "" if found == case["expected"] else f"found {found}, expected {case['expected']}"

    def _damage(self, case: Case) -> str:
        with tempfile.TemporaryDirectory() as place:
            bundle = Path(place) / "bundle"
            shutil.copytree(self.folder / "bundles" / case["bundle"], bundle)
            for patch in case["patches"]:
                _patch(bundle / patch["file"], patch, self.folder / "bundles")
            return _expect(case["error"], lambda: list(Generator(bundle).stream(case["prompts"], max_new_tokens=3)))


def _stream(generator: Generator, case: Case) -> Any:
    return generator.stream(
        case["prompts"],
        max_new_tokens=case["max_new_tokens"],
        sampling=_sampling(case),
        stop_ids=frozenset(case.get("stop_ids", [])),
        stop=case.get("stop", []),
        lookup=case.get("lookup", 0),
        logprobs=case.get("logprobs"),
    )


def _result(tokens: list[Token]) -> Case:
    return {"ids": [token.id for token in tokens], "finish": tokens[-1].finish}


def _far(tokens: list[Token], expected: Case, limit: float) -> str:
    """Compare log-probabilities, up to the first token that is not compared."""
    for number, (token, logprobs) in enumerate(zip(tokens, expected["logprobs"][: expected["compared"]], strict=False)):
        found = [token.logprob or 0, *(each.logprob for each in token.best)]
        if any(abs(a - b) > limit for a, b in zip(found, logprobs, strict=True)):
            return f"token {number}: found the log-probabilities {found}, expected {logprobs}"
    return ""


def _sampling(case: Case) -> Sampling | None:
    if "sampling" not in case:
        return None
    fields = case["sampling"]
    bias = {int(token): number for token, number in fields.get("logit_bias", {}).items()}
    return Sampling(**{**fields, "seed": int(fields["seed"]), "logit_bias": bias})


def _difference(number: int, found: Case, expected: Case) -> str:
    count = expected["compared"]
    if found["ids"][:count] != expected["ids"][:count]:
        return f"sequence {number} continues with {found['ids']}, expected {expected['ids'][:count]}"
    if count == len(expected["ids"]) and found != {name: expected[name] for name in ("ids", "finish")}:
        return f"sequence {number}: found {found}, expected {expected}"
    return ""


def _expect(kind: str, call: Any) -> str:
    try:
        call()
    except tuple(_KINDS) as error:
        found = next(name for family, name in _KINDS.items() if isinstance(error, family))
        return "" if found == kind else f"found an error of kind {found}, expected {kind}: {error}"
    return f"found no error, expected an error of kind {kind}"


def _patch(path: Path, patch: Case, bundles: Path) -> None:
    if "from" in patch:
        shutil.copyfile(bundles / patch["from"] / path.name, path)
    elif "remove" in patch:
        path.unlink()
    else:
        old, offset = path.read_bytes(), patch["offset"]
        path.write_bytes(old[:offset] + bytes.fromhex(patch["insert"]) + old[offset + patch["delete"] :])


def count_tokens(case: Case) -> tuple[int, int]:
    """Return the number of expected tokens of a case, and the number of tokens that are compared."""
    if case["kind"] == "tokens":
        found = case["expected"]
    elif case["kind"] in ("text", "session"):
        found = [case["expected"]]
    else:
        found = [each for call in case.get("calls", []) for each in call["expected"]]
    return sum(len(each["ids"]) for each in found), sum(each["compared"] for each in found)


def main(folder: Path) -> int:
    """Run all cases, print the results, and return the exit code."""
    suite = Suite(folder)
    failed = 0
    for case in suite.cases:
        wrong = suite.run(case)
        failed += bool(wrong)
        print(f"FAIL {case['name']}: {wrong}" if wrong else f"ok {case['name']}", flush=True)
    counts = [count_tokens(case) for case in suite.cases]
    total, compared = sum(count for count, _ in counts), sum(count for _, count in counts)
    print(
        f"{len(suite.cases) - failed} of {len(suite.cases)} cases passed; "
        f"{total - compared} of {total} tokens not compared"
    )
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
