"""Write sampling.json: inputs of sampling with the expected tokens, for drivers in every language.

    python -m runtimes.conformance.make.sampling_vectors [FILE]

`plain_sampling.py` computes the expected tokens.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from runtimes.conformance.make.plain_sampling import adjust, draw, exp64, sample, threefry, uniform

FILE = Path(__file__).parent.parent / "sampling.json"
ABOUT = (
    "Vectors of docs/bundle-format.md, section Sampling. In exp64 and uniform stand the bits of binary64. Logits "
    "are numbers, each an exact float32 ('NaN', 'Infinity', '-Infinity' are texts), or a recipe: state starts as seed; "
    "a step is state = (1664525 * state + 1013904223) mod 2^32, giving floor(state / 2^drop); a logit is "
    "(the sum of the next `terms` of them - terms * 2^(31 - drop)) / 2^shift. Parameters that a case leaves out have "
    "their defaults; seed is a text, since it may be above 2^53. position is the number of prompt and generated ids."
)


def numbers(logits: list[Any] | dict[str, int]) -> list[float]:
    """Return the logits of a list or a recipe (`ABOUT` describes recipes)."""
    if isinstance(logits, list):
        return [float(one) for one in logits]
    state, found = logits["seed"], []
    for _ in range(logits["size"]):
        drawn = 0
        for _ in range(logits["terms"]):
            state = (1664525 * state + 1013904223) % 2**32
            drawn += state // 2 ** logits["drop"]
        found.append((drawn - logits["terms"] * 2 ** (31 - logits["drop"])) / 2 ** logits["shift"])
    return found


def _recipe(size: int, seed: int, terms: int = 4, drop: int = 16, shift: int = 13) -> dict[str, int]:
    return {"size": size, "seed": seed, "terms": terms, "drop": drop, "shift": shift}


LOGITS: dict[str, list[Any] | dict[str, int]] = {
    "one": [3.5],
    "two": [0.25, -0.5],
    "two equal": [1, 1],
    "five": [-3, -0.9140625, -1.203125, -1.609375, -3],
    "steep": [0, 100, -100, 99.5, 99],
    "zeros": [0, 0, 0, 0, 0, 0, 0, 0],
    "ties": [2, 1, 2, 1, 2, 0, 1, 2, 0, 1],
    "signs": [-1.5, 1.5, 0, -0.25, 0.75, 2, -4, 0.5],
    "pair": [2.25, 0],
    "negative pair": [-2.25, 0],
    "largest": [3.4028234663852886e38, -3.4028234663852886e38, 3.4028232635611926e38, 0, 1],
    "smallest": [1.401298464324817e-45, 0, -1.401298464324817e-45],
    "not a number": [1, "NaN", 2],
    "infinite": [1, 2, "Infinity"],
    "minus infinite": ["-Infinity", 1, 2],
    "97": _recipe(97, 1),
    "1000": _recipe(1000, 2),
    "1000 with ties": _recipe(1000, 3, terms=2, drop=29, shift=1),
    "1000 flat": _recipe(1000, 4, terms=1, drop=16, shift=20),
    "1000 wide": _recipe(1000, 5, shift=8),
    "50000": _recipe(50000, 6),
}
SMALL = [
    "one",
    "two",
    "two equal",
    "five",
    "steep",
    "zeros",
    "ties",
    "signs",
    "pair",
    "negative pair",
    "largest",
    "smallest",
]
LARGE = ["97", "1000", "1000 with ties", "1000 flat", "1000 wide"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 1.25, "top_k": 3},
    {"temperature": 1, "top_k": 40},
    {"temperature": 1, "top_k": 2147483647},
    {"temperature": 1, "top_p": 0.25},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 2, "top_p": 0.9999999999999999},
    {"temperature": 1, "top_p": 1e-300},
    {"temperature": 1, "min_p": 0.05},
    {"temperature": 3, "min_p": 1},
    {"temperature": 1, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1e-6},
    {"temperature": 1e6},
    {"temperature": 1e6, "top_k": 7, "top_p": 0.5},
    {"temperature": 100, "top_k": 4, "top_p": 0.6},
]
PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"repetition_penalty": 100},
    {"presence_penalty": 1.5},
    {"presence_penalty": -2},
    {"frequency_penalty": 0.3},
    {"frequency_penalty": -0.7},
    {"logit_bias": {"1": 2.5, "0": -1e6}},
    {"logit_bias": {"1": 1e6}, "repetition_penalty": 1.1},
    {"repetition_penalty": 1.1, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": {"0": 0.1, "1": -0.3}},
]
REFUSED: list[dict[str, Any]] = [
    {"temperature": -1},
    {"temperature": 9e-7},
    {"temperature": 1.1e6},
    {"top_k": -1},
    {"top_k": 2147483648},
    {"top_p": 0},
    {"top_p": 1.01},
    {"min_p": -0.1},
    {"min_p": 1.1},
    {"repetition_penalty": 0.009},
    {"repetition_penalty": 101},
    {"presence_penalty": 2.1},
    {"frequency_penalty": -2.1},
    {"logit_bias": {"0": 1.1e6}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": {"5": 1}},
    {"seed": "-1"},
    {"seed": "18446744073709551616"},
]


VALUES = {name: numbers(logits) for name, logits in LOGITS.items()}


def _cases() -> list[dict[str, Any]]:
    """Return cases with random ids, seeds and sequence indices, and cases that a driver must refuse."""
    choose = random.Random(19)
    cases: list[dict[str, Any]] = []

    def add(logits: str, options: dict[str, Any], longest: int = 6) -> None:
        size = len(VALUES[logits])
        known = [choose.randrange(size) for _ in range(5)] + [0, min(1, size - 1)]  # few ids, so that ids repeat
        options = options | ({"seed": str(choose.getrandbits(64))} if options.get("temperature") else {})
        prompt, generated = (choose.choices(known, k=choose.randint(least, longest)) for least in (1, 0))
        sequence = choose.choice([0, 1, 2, 3, 2**32 - 1])
        token = sample(VALUES[logits], options, prompt, generated, sequence)
        cases.append(_case(logits, options, token=token, prompt=prompt, generated=generated, sequence=sequence))

    for name in (*SMALL, *LARGE):
        for options in OPTIONS:
            for _ in range(2 if options else 1):
                add(name, options)
        for penalties in PENALTIES if name != "one" else []:
            for options in (choose.choice(OPTIONS[1:]), {}):
                add(name, options | penalties, longest=30)
    for number in (1, 4, 7, 8, 10):
        add("50000", OPTIONS[number])
    for options in ({}, OPTIONS[12]):
        add("50000", options | PENALTIES[9], longest=100)
    for name in ("not a number", "infinite", "minus infinite"):
        cases += [_case(name, options, error="provider") for options in OPTIONS[:3]]
    cases += [_case("five", {"temperature": 1} | options, error="request") for options in REFUSED]
    return cases


def _border_cases() -> Iterator[dict[str, Any]]:
    """Yield cases in which the token depends on the last bit of an intermediate result."""
    # The bias makes the logit of token 1 equal to the logit of token 0, then larger by one unit in the last place.
    for count, penalties in enumerate(PENALTIES):
        for logits in ("pair", "negative pair"):
            options = penalties | {"logit_bias": {"0": 0.1}}
            value = adjust(VALUES[logits], options, [0], [0] * count)[0]
            for limit in (value, math.nextafter(value, math.inf)):
                options["logit_bias"] = {"0": 0.1, "1": limit}
                token = sample(VALUES[logits], options, [0], [0] * count, 0)
                yield _case(logits, dict(options), generated=[0] * count, token=token)
    x, temperature = VALUES["97"], 3.0
    y = [(one - max(x)) / temperature for one in x]
    w = [exp64(one) for one in y]
    order = sorted(range(len(y)), key=lambda token: (-y[token], token))
    for place in range(1, 40):  # min_p is equal to a weight, then larger by one unit in the last place
        for min_p in (w[order[place]], math.nextafter(w[order[place]], 1)):
            yield _decided({"temperature": temperature, "min_p": min_p}, order[: place + 1], order[:place])
    # For these values of top_p, a driver that sums in another order, or sums probabilities, gets another result.
    sums, total = list(accumulate(w[token] for token in order)), list(accumulate(w))[-1]
    shares = list(accumulate(w[token] / total for token in order))
    for place, (reached, share) in enumerate(zip(sums[:-1], shares, strict=False)):
        top_p = reached / total
        right = reached >= top_p * total
        if right != (reached >= top_p * sums[-1]) or right != (share >= top_p):
            yield _decided({"temperature": temperature, "top_p": top_p}, order[: place + 1], order[: place + 2])


def _decided(options: dict[str, Any], one: list[int], other: list[int]) -> dict[str, Any]:
    """Return a case of logits "97" with a seed for which two sets of candidates give different tokens."""
    w = [exp64((logit - max(VALUES["97"])) / options["temperature"]) for logit in VALUES["97"]]

    def differs(seed: int) -> bool:
        u = uniform(seed, 0, 1)
        return draw(sorted(one), w, u) != draw(sorted(other), w, u)

    options = options | {"seed": str(next(filter(differs, range(10**6))))}
    return _case("97", options, token=sample(VALUES["97"], options, [0], [], 0))


def _case(logits: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"logits": logits, "sampling": options} | {"prompt": [0], "generated": [], "sequence": 0} | more


def _bits(number: float) -> str:
    return struct.pack(">d", number).hex()


def vectors() -> dict[str, Any]:
    """Return the content of the file as an object."""
    choose = random.Random(64)
    blocks = [
        ((0, 0), (0, 0)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)),
    ]
    blocks += [((choose.getrandbits(32), choose.getrandbits(32)), (index, index * 7)) for index in range(5)]
    draws = [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (2**53 + 1, 0, 1), (2**32, 3, 5), (1, 0, 4096)]
    arguments = [0.0, -0.0, -5e-324, -1e-300, -1e-17, -(2.0**-53), -1e-9, -0.34657359027997264, -0.34657359027997270]
    arguments += [-0.5, -1.0, -63.999999999999986, -64.0, -64.00000000000001, -65.0, -1e46]
    arguments += [-choose.random() * choose.choice([1, 8, 64, 66]) for _ in range(200)]
    return {
        "about": ABOUT,
        "threefry": [
            {
                name: [f"{half:08x}" for half in pair]
                for name, pair in zip(("key", "counter", "output"), three, strict=True)
            }
            for three in ((key, counter, threefry(key, counter)) for key, counter in blocks)
        ],
        "uniform": [
            {
                "seed": str(seed),
                "sequence": sequence,
                "position": position,
                "u": _bits(uniform(seed, sequence, position)),
            }
            for seed, sequence, position in draws
        ],
        "exp64": [[_bits(y), _bits(exp64(y))] for y in arguments],
        "logits": LOGITS,
        "cases": _cases() + list(_border_cases()),
    }


def contents() -> str:
    """Return the content of the file as JSON text with one case per line."""
    lines = []
    for name, value in vectors().items():
        rows = [json.dumps(row) for row in value] if isinstance(value, list) else None
        text = "[\n" + ",\n".join(rows) + "\n]" if rows else json.dumps(value)
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else FILE).write_text(contents(), encoding="utf-8")
