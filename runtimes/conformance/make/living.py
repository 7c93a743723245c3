"""Cases of sequences that live: scripts of operations, calls that share a prefix, saved sessions, and prompt lookup.

The source model in PyTorch computes every expected token from the whole text. The key and value caches of a saved
session come from the Python driver, since only drivers have them.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from molkv_runtime import Generator, Sampling
from runtimes.conformance.make.tokens import GREEDY, SAMPLED, Source

Case = dict[str, Any]
_BATCH = 3
_TRIES = 40  # number of random texts; those with the most certain tokens are taken
_ZEROS = b"0" * 64
# Some bundles of each mechanism, KV dtype and profile.
SCRIPTED = (
    *("molkv", "mole", "dense", "experts-nf4", "window-int8", "window-int8-float16", "kv-int8", "coreml", "nnapi"),
    "gemma4",
)
SAVED = ("molkv", "mole", "kv-int8", "coreml", "gemma4")
CALLED = ("molkv", "mole", "gemma4")


class _Script:
    """A script of operations on sequences, and after each of them the likeliest token with its logit."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._random = source, np.random.default_rng(seed)
        self._texts: list[list[int]] = [[] for _ in range(_BATCH)]
        self.steps: list[Case] = []

    def _drawn(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._source.config.vocab_size, count).tolist()
        return ids

    def _next(self, sequence: int) -> list[float]:
        return self._source.likeliest(self._texts[sequence])

    def prefill(self, sequence: int, count: int) -> None:
        ids = self._drawn(count)
        self._texts[sequence] += ids
        self.steps.append({"do": "prefill", "sequence": sequence, "ids": ids, "logit": self._next(sequence)})

    def decode(self, *active: int) -> None:
        ids = self._drawn(_BATCH)
        for sequence in active:
            self._texts[sequence].append(ids[sequence])
        going = [sequence in active for sequence in range(_BATCH)]
        logits = [self._next(sequence) if sequence in active else None for sequence in range(_BATCH)]
        self.steps.append({"do": "decode", "ids": ids, "active": going, "logits": logits})

    def rewind(self, sequence: int, length: int) -> None:
        del self._texts[sequence][length:]
        self.steps.append({"do": "rewind", "sequence": sequence, "length": length})

    def fork(self, sequence: int, copy: int) -> None:
        self._texts[copy] = list(self._texts[sequence])
        self.steps.append({"do": "fork", "sequence": sequence, "copy": copy})

    def refused(self, **step: Any) -> None:
        self.steps.append({**step, "error": "request"})


def script_case(name: str, source: Source) -> Case:
    """Return the case of a script: rewinds over the window and into a prompt, forks, and sequences that join late."""
    script = _Script(source, zlib.crc32(name.encode()))
    script.prefill(0, 11)
    script.decode(0)
    script.prefill(1, 6)
    for _ in range(3):
        script.decode(0, 1)
    script.rewind(0, 13)
    script.decode(0, 1)
    script.rewind(0, 4)  # into the prompt
    script.decode(0)
    script.fork(0, 2)
    script.refused(do="fork", sequence=0)
    script.decode(0, 1, 2)
    script.refused(do="rewind", sequence=1, length=40)
    script.refused(do="rewind", sequence=1, length=-1)
    script.rewind(1, 0)
    script.decode(0, 2)
    script.prefill(1, 7)  # a new text joins
    script.decode(0, 1, 2)
    script.rewind(2, 1)
    script.prefill(2, 9)
    script.decode(0, 1, 2)
    about = {"name": f"{name}/sequences", "kind": "sequences", "bundle": name, "batch_size": _BATCH}
    return {**about, "steps": script.steps}


def calls_case(name: str, source: Source) -> Case:
    """Return a case of several calls whose prompts begin alike: longer, shorter, the same again, and another one."""

    def calls(prompt: list[int]) -> list[Case]:
        grown = [*prompt, *source.continued(prompt, 6, GREEDY)["ids"], 5, 9]
        return [
            _call(source, text, options)
            for text, options in (
                (prompt, GREEDY),
                (grown, GREEDY),
                (prompt[:19], SAMPLED),
                (grown, GREEDY),
                ([prompt[0] ^ 1, *prompt[1:]], GREEDY),
            )
        ]

    drawn = _drawn(f"{name}/calls", source, 24)
    return {"name": f"{name}/calls", "kind": "calls", "bundle": name, "calls": _first_certain(map(calls, drawn))}


def lookup_cases(name: str, source: Source) -> list[Case]:
    """Return cases of kind "tokens" with prompt lookup: prompts that repeat themselves, so that tokens are proposed."""
    cases = []
    for what, options in (("lookup", GREEDY), ("lookup-sampled", SAMPLED)):

        def batch(drawn: list[int], options: Case = options) -> list[Case]:
            prompts = [drawn[:6] * 4, drawn[6:11] * 3 + drawn[:2]]
            expected = [source.continued(prompt, 12, options, sequence) for sequence, prompt in enumerate(prompts)]
            return [{"prompts": prompts, "max_new_tokens": 12, "sampling": options, "expected": expected}]

        tried: Iterator[list[Case]] = map(batch, _drawn(f"{name}/{what}", source, 11))
        if name == "gemma4":  # it seldom repeats what a prompt repeats, so most prompts would test nothing
            tried = (calls for calls in tried if _rejects(calls[0]))
        (found,) = _first_certain(tried)
        for prompt, each in zip(found["prompts"], found["expected"], strict=True):
            each["logprobs"] = source.logprobs(prompt, each["ids"], 1)
        about = {"name": f"{name}/{what}", "kind": "tokens", "bundle": name}
        cases.append({**about, **found, "lookup": 4, "logprobs": 1})
    return cases


def _rejects(call: Case) -> bool:
    """Return whether a text has a pair of tokens again, but then goes on otherwise, with several tokens more."""
    for prompt, found in zip(call["prompts"], call["expected"], strict=True):
        ids = [*prompt, *found["ids"]]
        for end in range(len(prompt) + 1, len(ids) - 4):
            before = [ids[at + 2] for at in range(end - 2) if ids[at : at + 2] == ids[end - 2 : end]]
            if before and before[-1] != ids[end]:
                return True
    return False


def logprobs_case(name: str, source: Source) -> Case:
    """Return a case of kind "tokens" with log-probabilities: of each token, and of the three likeliest ones."""

    def call(drawn: list[int]) -> list[Case]:
        return [_call(source, drawn, SAMPLED)]

    (found,) = _first_certain(map(call, _drawn(f"{name}/logprobs", source, 9)))
    (expected,) = found["expected"]
    expected["logprobs"] = source.logprobs(found["prompts"][0], expected["ids"], 3)
    return {"name": f"{name}/logprobs", "kind": "tokens", "bundle": name, **found, "logprobs": 3}


def _call(source: Source, prompt: list[int], options: Case, new: int = 6) -> Case:
    expected = [source.continued(prompt, new, options)]
    return {"prompts": [prompt], "max_new_tokens": new, "sampling": options, "expected": expected}


def _drawn(case: str, source: Source, count: int) -> Iterator[list[int]]:
    """Yield lists of random token ids, for a case to try."""
    random = np.random.default_rng(zlib.crc32(case.encode()))
    for _ in range(_TRIES):
        yield random.integers(0, source.config.vocab_size, count).tolist()


def _first_certain(tried: Iterator[list[Case]]) -> list[Case]:
    """Return the first calls whose tokens are all certain, or else those with the most certain tokens."""
    best: list[Case] = []
    most = -1
    for calls in tried:
        found = [each for call in calls for each in call["expected"]]
        certain = sum(each["compared"] for each in found)
        if certain > most:
            best, most = calls, certain
        if certain == sum(len(each["ids"]) for each in found):
            break
    return best


def session_case(name: str, source: Source, folder: Path) -> Case:
    """Write a saved session of a bundle to `folder`, and return the case that continues it."""
    generator, file = Generator(source.bundle.path, prefix_cache_bytes=0), f"{name}.safetensors"

    def call(drawn: list[int]) -> list[Case]:
        ids = [*drawn[:17], *source.continued(drawn[:17], 4, GREEDY)["ids"]]
        return [{**_call(source, [*ids, *drawn[17:]], GREEDY, 8), "ids": ids, "then": drawn[17:]}]

    (found,) = _first_certain(map(call, _drawn(f"{name}/session", source, 20)))
    session = generator.session()
    list(session.stream(found["ids"][:-1], max_new_tokens=1, sampling=Sampling(logit_bias={found["ids"][-1]: 1e6})))
    session.save(folder / file)
    fields = {field: found[field] for field in ("ids", "then", "max_new_tokens", "sampling")}
    case = {"name": f"{name}/session", "kind": "session", "bundle": name, "session": file}
    (expected,) = found["expected"]
    expected["logprobs"] = source.logprobs(found["prompts"][0], expected["ids"], 3)
    return {**case, **fields, "logprobs": 3, "expected": expected}


def refused_sessions(name: str, foreign: str, folder: Path) -> list[Case]:
    """Return the cases of saved sessions that a driver must refuse: damaged, of another bundle, with wrong contents."""
    file = f"{name}.safetensors"
    data = (folder / file).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    ids = json.loads(data[8:start])["input_ids"]["data_offsets"][0] + start
    cache = json.loads(data[8:start])["past_key_values.0.key"]["data_offsets"][0] + start
    nan, negative = struct.pack("<f", math.nan), struct.pack("<i", -1)
    changes = {
        "a bit of an id": _flipped(data, ids),
        "a bit of the cache": _flipped(data, cache + 2),
        "a bit of the graph's hash": _flipped(data, data.index(b'"graph"') + 12),
        "a NaN in the cache": _sealed(data[:cache] + nan + data[cache + 4 :]),
        "a negative id": _sealed(data[:ids] + negative + data[ids + 4 :]),
        "another version": _sealed(data.replace(b'"session_version": "1"', b'"session_version": "2"')),
        "another graph": _sealed(_flipped(data, data.index(b'"graph"') + 12)),
        "other names of tensors": _sealed(data.replace(b"past_key_values.0.key", b"past_key_values.7.key")),
        "cut short": data[: len(data) - 64],
        "only its header": data[:start],
    }
    about = {"kind": "session-refused", "bundle": name, "session": file, "error": "request"}
    cases = [
        {**about, "name": f"{name}/session-refused/{what}", "patches": _patches(data, new)}
        for what, new in changes.items()
    ]
    return [*cases, {**about, "name": f"{name}/session-refused/another bundle", "bundle": foreign, "patches": []}]


def _flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def _sealed(data: bytes) -> bytes:
    """Return the bytes of a session with the right hash."""
    place = data.index(b'"sha256": "') + 11
    blank = data[:place] + _ZEROS + data[place + 64 :]
    return blank[:place] + hashlib.sha256(blank).hexdigest().encode() + blank[place + 64 :]


def _patches(old: bytes, new: bytes) -> list[Case]:
    """Return the changes that turn a file into another one of the same size, or into its beginning."""
    if len(new) < len(old):
        return [{"offset": len(new), "delete": len(old) - len(new), "insert": ""}]
    different = [index for index, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    patches = []
    for _, group in groupby(enumerate(different), key=lambda pair: pair[1] - pair[0]):  # consecutive bytes
        run = [index for _, index in group]
        patches.append({"offset": run[0], "delete": len(run), "insert": new[run[0] : run[-1] + 1].hex()})
    return patches
