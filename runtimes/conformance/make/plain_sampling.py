"""An independent implementation of sampling that follows docs/bundle-format.md, "Sampling", sentence by sentence.

It uses no code of the driver. It computes with Python floats and integers, loops and full sorts. So it is slow, but
easy to compare with the document.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

COEFFICIENTS = [1.0, 1.0, 0.5] + [
    float.fromhex(digits)
    for digits in (
        "0x1.5555555554eb5p-3",
        "0x1.5555555553b0cp-5",
        "0x1.11111112d2ae2p-7",
        "0x1.6c16c179ff28ep-10",
        "0x1.a019f7c5fd11ep-13",
        "0x1.a019b39c36ee6p-16",
        "0x1.71f4b150fbc5cp-19",
        "0x1.28976591b6f1dp-22",
        "0x1.8abb61a62f2a1p-26",
    )
]


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Return two 32-bit words: Threefry-2x32 with 20 rounds, applied to a counter."""
    k = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x0, x1 = (counter[0] + k[0]) % 2**32, (counter[1] + k[1]) % 2**32
    for i in range(20):
        turn = [13, 15, 26, 6, 17, 29, 16, 24][i % 8]
        x0 = (x0 + x1) % 2**32
        x1 = (x1 * 2**turn % 2**32 + x1 // 2 ** (32 - turn)) ^ x0
        if i % 4 == 3:
            j = (i + 1) // 4
            x0, x1 = (x0 + k[j % 3]) % 2**32, (x1 + k[(j + 1) % 3] + j) % 2**32
    return x0, x1


def uniform(seed: int, sequence: int, position: int) -> float:
    """Return the random number u of a position in a sequence, 0 <= u < 1."""
    x0, x1 = threefry((seed % 2**32, seed // 2**32), (sequence, position))
    return (x0 // 2**5 * 2**26 + x1 // 2**6) / 2**53


def exp64(y: float) -> float:
    """Return the weight exp(y) of y <= 0; 0 for y < -64."""
    if y < -64:
        return 0.0
    n = math.floor(y * float.fromhex("0x1.71547652b82fep+0") + 0.5)
    r = (y - n * float.fromhex("0x1.62e42feep-1")) - n * float.fromhex("0x1.a39ef35793c76p-33")
    p = COEFFICIENTS[11]
    for k in range(10, -1, -1):
        p = p * r + COEFFICIENTS[k]
    return math.ldexp(p, n)


def adjust(logits: list[float], options: dict[str, Any], prompt: list[int], generated: list[int]) -> list[float]:
    """Return logits after bias and penalties."""
    x = list(logits)
    for token, bias in options.get("logit_bias", {}).items():
        x[int(token)] = x[int(token)] + bias
    r = options.get("repetition_penalty", 1)
    for token in set(prompt) | set(generated):
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token in set(generated):
        x[token] = x[token] - options.get("frequency_penalty", 0) * generated.count(token)
        x[token] = x[token] - options.get("presence_penalty", 0)
    return x


def keep(y: list[float], w: list[float], options: dict[str, Any]) -> list[int]:
    """Return the ids of the tokens that pass top_k, top_p and min_p, ascending."""
    ids = list(range(len(y)))

    def order(token: int) -> tuple[float, int]:
        return -y[token], token

    if options.get("top_k", 0):
        ids = sorted(sorted(ids, key=order)[: options["top_k"]])
    if options.get("top_p", 1) < 1:
        total = 0.0
        for token in ids:
            total = total + w[token]
        kept, reached = [], 0.0
        for token in sorted(ids, key=order):
            kept.append(token)
            reached = reached + w[token]
            if reached >= options["top_p"] * total:
                break
        ids = sorted(kept)
    return [token for token in ids if w[token] >= options.get("min_p", 0)]


def sample(logits: list[float], options: dict[str, Any], prompt: list[int], generated: list[int], sequence: int) -> int:
    """Return the chosen token."""
    x = adjust(logits, options, prompt, generated)
    m = max(x)
    temperature = options.get("temperature", 0)
    if temperature == 0:
        return x.index(m)
    y = [(one - m) / temperature for one in x]
    w = [exp64(one) for one in y]
    return draw(keep(y, w, options), w, uniform(int(options["seed"]), sequence, len(prompt) + len(generated)))


def draw(ids: list[int], w: list[float], u: float) -> int:
    """Return the candidate that the random number u selects."""
    sums = list(accumulate(w[token] for token in ids))
    return next(token for token, reached in zip(ids, sums, strict=True) if reached > u * sums[-1])
