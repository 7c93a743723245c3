"""Settings for generating text: tokens that end a text, sampling parameters and their ranges."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import msgspec

ChatTemplateFile = Literal["chat_template.jinja", "tokenizer_config.json", ""]  # empty: no template


class _Range(NamedTuple):
    kind: Callable[[Any], float]  # float or int
    holds: Callable[[float], bool]
    words: str  # the range in words, for messages


# These are the ranges in the table of docs/bundle-format.md, "Sampling". NaN is outside of every range.
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


def sampling_range(name: str) -> str:
    """Return the possible values of a sampling parameter, in words."""
    return _RANGES[name].words


def sampling_number(name: str, value: object, found: str = "") -> float:
    """Check a sampling parameter, and return it as a Python float, or as an int if the parameter is an integer.

    Args:
        name: The name of the parameter in the bundle format.
        value: The value to check, of any type; numbers may be Python's or numpy's.
        found: The beginning of the error message; default "NAME: found VALUE".

    Raises:
        ValueError: The value is not a number of the right kind, or is outside the range of this parameter.
    """
    kind, holds, words = _RANGES[name]
    if isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # the integer is too large for a float
            number = kind(value)
            if holds(number):
                return number
    raise ValueError(f"{found or f'{name}: found {value!r:.80}'}, expected {words}")


class SamplingDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sampling parameters that apply unless the user gives others (`docs/bundle-format.md`, "Sampling")."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            sampling_number(name, getattr(self, name))


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings for generating text, which the exporter reads from the checkpoint."""

    eos_token_ids: tuple[int, ...]  # each of these ends a text
    sampling: SamplingDefaults
    chat_template: ChatTemplateFile
