"""What a driver has to know of generating text: where it ends, and how tokens are chosen where a user does not say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import msgspec

ChatTemplate = Literal["chat_template.jinja", "tokenizer_config.json", ""]  # the file that has it; empty: there is none


class _Range(NamedTuple):
    kind: Callable[[Any], float]  # float or int
    holds: Callable[[float], bool]
    words: str  # the same for a reader of messages


# As the table in docs/bundle-format.md, "Sampling". No NaN is in a range.
_RANGES = {
    "temperature": _Range(float, lambda x: x == 0 or 1e-6 <= x <= 1e6, "0 (greedy), or 1e-06 to 1e+06"),
    "top_k": _Range(int, lambda x: 0 <= x < 2**31, "0 (off) to 2147483647"),
    "top_p": _Range(float, lambda x: 0 < x <= 1, "more than 0 and at most 1"),
    "min_p": _Range(float, lambda x: 0 <= x <= 1, "0 to 1"),
    "repetition_penalty": _Range(float, lambda x: 0.01 <= x <= 100, "0.01 to 100"),
    "presence_penalty": _Range(float, lambda x: -2 <= x <= 2, "-2 to 2"),
    "frequency_penalty": _Range(float, lambda x: -2 <= x <= 2, "-2 to 2"),
    "logit_bias": _Range(float, lambda x: -1e6 <= x <= 1e6, "-1e+06 to 1e+06"),
    "seed": _Range(int, lambda x: 0 <= x < 2**64, "0 to 18446744073709551615"),
}


def sampling_number(name: str, value: object, found: str = "") -> float:
    """Return a parameter of sampling as Python's float, or int where the format says integer; it is checked as that.

    Args:
        name: The format's name of it.
        value: What was given: a number of Python or numpy, or anything else.
        found: How the message begins; default "NAME is VALUE".

    Raises:
        ValueError: It is no number, or not in the range of this parameter.
    """
    kind, holds, words = _RANGES[name]
    if isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # no float is that large
            number = kind(value)
            if holds(number):
                return number
    raise ValueError(f"{found or f'{name} is {value!r:.80}'}, expected {words}")


class SamplingDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen where a user does not say; names and ranges as in `docs/bundle-format.md`, "Sampling"."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            sampling_number(name, getattr(self, name))


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a driver has to know of generating text, looked up by the exporter."""

    eos_token_ids: tuple[int, ...]  # a text ends at the first of these
    sampling: SamplingDefaults
    chat_template: ChatTemplate
