"""Checks of what a caller of the driver passes in."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import RequestError


def whole_number(name: str, value: Any, least: int, meaning: str = "") -> int:
    """Check an integer of Python or numpy; `meaning` says what the least value does.

    Raises:
        RequestError: It is something else, or less than `least`.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise RequestError(f"{name} is {value!r}, expected {least}{meaning} or more")
    return number


def token_ids(name: str, value: Any) -> npt.NDArray[Any]:
    """Return token ids as an array [n]; whether they are in the vocabulary is the store's to say.

    Raises:
        RequestError: It is not a list or an array of one dimension.
    """
    try:
        ids = np.asarray(value)
    except (ValueError, TypeError) as error:  # lists inside of lists, of different length
        raise RequestError(f"{name} is not a list of token ids ({error})") from error
    if isinstance(value, str | bytes) or ids.ndim != 1:
        kind = type(value).__name__ if ids.ndim == 0 else f"an array of shape {list(ids.shape)}"
        raise RequestError(f"{name} is {kind}, expected a list of token ids")
    return ids


def list_of(what: str, name: str, value: Any) -> list[Any]:
    """Return the items of a list or an array; `what` says what they are.

    Raises:
        RequestError: It is a single text, or has no items.
    """
    found = f"a {type(value).__name__}"
    if not isinstance(value, str | bytes):
        try:
            if items := list(value):
                return items
            found = "empty"
        except TypeError:
            pass
    raise RequestError(f"{name} is {found}, expected a list of {what}, at least one")
