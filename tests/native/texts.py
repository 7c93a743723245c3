"""Random texts that are difficult for tokenizers."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.native.tokenizers_of_all_kinds import CONTENTS

_WORDS = ["the", "The", "THE", "of", "and", "to", "in", "is", "it's", "You'LL", "they're", "we've", "I'm", "he'd", "x"]
_WORDS += ["naïve", "Straße", "hello", "world", "don't", "can't", "y"]
_CONTRACTIONS = [
    "'s",
    "'S",
    "'\u017f",
    "'t",
    "'T",
    "'re",
    "'rE",
    "'VE",
    "'m",
    "'ll",
    "'lL",
    "'d",
    "'D",
    "''s",
    "'",
    "\u2019s",
]
_SPACES = [" ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u2003"]
_SPACES += ["\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u180e", " \n ", "\n ", "\r"]
_EMOJI = ["🙂", "👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f"]
_DIGITS = "0123456789٣४๕፩߁①½Ⅷ\u3007三\U0001d7db𝍠²௧"
_CODE = [
    "def f(x):\n    return x+1\n",
    "for (int i=0;i<10;++i) {}\n",
    "a_b->c::d",
    "#!/bin/sh\n",
    '{"k": [1,2]}',
    "\\\\n",
]
_MARKS = [
    *map(chr, range(0x300, 0x370)),
    "\u0591",
    "\u05b0",
    "\u064b",
    "\u0e38",
    "\u3099",
    "\u1dfa",
    "\u0f71",
    "\u0f72",
]
_BASES = [
    *"aeiouAEIOUnscCz",
    "あ",
    "か",
    "ক",
    "\u0f40",
    "\u1100",
    "\u1161",
    "\u11a8",
    "\uac00",
    "\u212b",
    "\u0958",
    "\u2126",
]
_HOLES = [(0x00, 0x20), (0x20, 0x7F), (0x80, 0x300), (0x300, 0x700), (0x700, 0x2000), (0x2000, 0x3100)]
_HOLES += [(0x3100, 0xD800), (0xE000, 0x10000), (0x10000, 0x12000), (0x1D000, 0x20000), (0x20000, 0x110000)]


def _code_points(rng: random.Random) -> str:
    first, last = rng.choice(_HOLES)
    return "".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, 6)))


def _marked(rng: random.Random) -> str:
    return rng.choice(_BASES) + "".join(rng.choices(_MARKS, k=rng.randrange(4)))


def _choice(items: list[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(items)


def _digits(rng: random.Random) -> str:
    return "".join(rng.choices(_DIGITS, k=rng.randrange(1, 9)))


def _repeated(rng: random.Random) -> str:
    return rng.choice([*_WORDS, *_SPACES, "a", "ab", "!", "="]) * rng.randrange(1, 20)


_PARTS: list[Callable[[random.Random], str]] = [
    *(_choice(items) for items in (_WORDS, _WORDS, _CONTRACTIONS, _SPACES, _SPACES, _EMOJI, _CODE, CONTENTS, CONTENTS)),
    *(_code_points, _code_points, _marked, _digits, _repeated),
]


def random_text(rng: random.Random) -> str:
    """Return a text of up to 24 parts; often with single spaces between the parts."""
    parts = [rng.choice(_PARTS)(rng) for _ in range(rng.randrange(25))]
    text = rng.choice(["", "", " "]).join(parts)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text
