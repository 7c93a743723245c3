"""Run the conformance suite with the Python driver: .venv/bin/python runtimes/conformance/python_driver.py [FOLDER].

The program prints a line for each case. The last line has the number of passed cases and the number of tokens that were
not compared. The exit code is 1 if a case failed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from molkv_bundle import BundleError, ProviderError, RequestError
from molkv_runtime import Generator, Sampling, selftest

Case = dict[str, Any]
_KINDS = {BundleError: "bundle", RequestError: "request", ProviderError: "provider"}


class Suite:
    """The cases of a folder, and the generators of its bundles, which are opened on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
        self._open: dict[str, Generator] = {}

    def run(self, case: Case) -> str:
        """Run a case. Return a description of the failure, or an empty text if the case passed."""
        return {
            "golden": self._golden,
            "tokens": self._tokens,
            "text": self._text,
            "refused": self._refused,
            "damage": self._damage,
        }[case["kind"]](case)

    def _generator(self, case: Case) -> Generator:
        name = case["bundle"]
        if name not in self._open:
            self._open[name] = Generator(self.folder / "bundles" / name)
        return self._open[name]

    def _golden(self, case: Case) -> str:
        return "; ".join(selftest(self.folder / "bundles" / case["bundle"]).failures)

    def _tokens(self, case: Case) -> str:
        found: list[Case] = [{"ids": [], "finish": ""} for _ in case["prompts"]]
        for token in _stream(self._generator(case), case):
            found[token.sequence]["ids"].append(token.id)
            found[token.sequence]["finish"] = token.finish
        return "; ".join(filter(None, map(_difference, range(len(found)), found, case["expected"])))

    def _text(self, case: Case) -> str:
        generator, expected = self._generator(case), case["expected"]
        if generator.tokenizer.encode(case["prompt"]).ids != case["prompt_ids"]:
            return f"the token ids of the prompt differ, expected {case['prompt_ids']}"
        options = {"max_new_tokens": case["max_new_tokens"], "sampling": _sampling(case)}
        tokens = list(generator.stream([case["prompt_ids"]], **options))
        found = {"ids": [token.id for token in tokens], "finish": tokens[-1].finish}
        pieces = list(generator.text(case["prompt"], **options))
        if expected["compared"] == len(expected["ids"]) and pieces != expected["pieces"]:
            return f"the pieces are {pieces}, expected {expected['pieces']}"
        return _difference(0, found, expected)

    def _refused(self, case: Case) -> str:
        def request() -> None:
            generator = self._generator(case)
            list(generator.text(case["text"]) if "text" in case else _stream(generator, case))

        return _expect(case["error"], request)

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
    )


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


def main(folder: Path) -> int:
    """Run all cases, print the results, and return the exit code."""
    suite = Suite(folder)
    failed = 0
    for case in suite.cases:
        wrong = suite.run(case)
        failed += bool(wrong)
        print(f"FAIL {case['name']}: {wrong}" if wrong else f"ok {case['name']}", flush=True)
    tokens = [found for case in suite.cases if case["kind"] == "tokens" for found in case["expected"]]
    tokens += [case["expected"] for case in suite.cases if case["kind"] == "text"]
    total, compared = sum(len(found["ids"]) for found in tokens), sum(found["compared"] for found in tokens)
    print(
        f"{len(suite.cases) - failed} of {len(suite.cases)} cases passed; "
        f"{total - compared} of {total} tokens not compared"
    )
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
