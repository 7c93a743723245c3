"""Checks of arguments that a caller passes to the driver, and of the calling process."""

from __future__ import annotations

import operator
import os
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from molkv_bundle import ArgumentError, Ids, RequestError


def whole_number(name: str, value: Any, least: int, *, most: int | None = None, what: str = "") -> int:
    """Return `value` as an int after checking that it is an integer, of Python or numpy, from `least` to `most`.

    Args:
        name: The name of the argument, for the message.
        value: The value to check, of any type.
        least: The smallest allowed value.
        most: The largest allowed value; None: no limit.
        what: Text before the value in the message.

    Raises:
        ArgumentError: The value is not an integer, or is outside of this range.
    """
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ArgumentError(name, f"{what}{value!r:.80}", f"an integer, {expected}")
    if number < least or (most is not None and number > most):
        raise ArgumentError(name, f"{what}{value!r}", expected)
    return number


def token_ids(name: str, value: Any) -> npt.NDArray[Any]:
    """Return token ids as an array [n]. They may be outside the vocabulary.

    Raises:
        RequestError: The value is not a list or an array of one dimension.
    """
    try:
        ids = np.asarray(value)
    except (ValueError, TypeError) as error:  # nested lists of different lengths
        raise RequestError(f"{name}: expected a list of token ids ({error})") from error
    if isinstance(value, str | bytes) or ids.ndim != 1:
        kind = type(value).__name__ if ids.ndim == 0 else f"an array of shape {list(ids.shape)}"
        raise RequestError(f"{name}: found {kind}, expected a list of token ids")
    return ids


def inside_vocabulary(name: str, ids: npt.NDArray[Any], vocab_size: int) -> Ids:
    """Return token ids [n] as int64, after checking that they are in the vocabulary.

    Raises:
        RequestError: An id is not an integer.
        ArgumentError: An id is outside the vocabulary.
    """
    if ids.size and ids.dtype.kind not in "iu":
        raise RequestError(f"{name}: found dtype {ids.dtype}, expected token ids, which are integers")
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise ArgumentError(name, f"token id {wrong[0]}", f"0 to {vocab_size - 1} (the vocabulary)")
    return ids.astype(np.int64, copy=False)


def list_of(what: str, name: str, value: Any) -> list[Any]:
    """Return the items of a list or an array.

    Args:
        what: A plural noun for the items, for the message.
        name: The name of the argument, for the message.
        value: The value to check, of any type.

    Raises:
        RequestError: The value is a single text, is not iterable, or is empty.
    """
    found = type(value).__name__
    if not isinstance(value, str | bytes):
        try:
            if items := list(value):
                return items
            found = "an empty list"
        except TypeError:
            pass
    raise RequestError(f"{name}: found {found}, expected a list of {what}, at least one")


class InOneProcess:
    """Base class of objects whose threads, open files or sessions do not exist after a fork or in a pickle."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def check_process(self) -> None:
        """Check that the current process created this object.

        In a forked process the threads of the object do not exist, so waiting for them would never end.

        Raises:
            RequestError: Another process created this object.
        """
        if os.getpid() != self._process:
            raise RequestError(
                f"a {type(self).__name__} of process {self._process} is used in process {os.getpid()}, a fork without "
                "its threads; open the bundle in the process that uses it (multiprocessing: method 'spawn')"
            )

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            f"a {type(self).__name__} cannot be pickled or copied, since it has open files and threads; pass the "
            "bundle's path instead, and open the bundle in the other process"
        )
