"""Checks of what a caller of the driver passes in, and of the process that calls."""

from __future__ import annotations

import operator
import os
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from molkv_bundle import Ids, RequestError


def whole_number(name: str, value: Any, least: int, meaning: str = "", most: int | None = None) -> int:
    """Check an integer of Python or numpy; `meaning` says what the least value does.

    Raises:
        RequestError: It is something else, less than `least` or more than `most`.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        upwards = "or more" if most is None else f"to {most}"
        raise RequestError(f"{name} is {value!r}, expected {least}{meaning} {upwards}")
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


def inside_vocabulary(name: str, ids: npt.NDArray[Any], vocab_size: int) -> Ids:
    """Return token ids [n] as int64.

    Raises:
        RequestError: One is not an integer, or outside the vocabulary.
    """
    if ids.size and ids.dtype.kind not in "iu":
        raise RequestError(f"{name} holds {ids.dtype}, expected token ids, which are integers")
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise RequestError(f"{name} holds the token id {wrong[0]}, expected 0 to {vocab_size - 1} (the vocabulary)")
    return ids.astype(np.int64, copy=False)


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


class InOneProcess:
    """Base of what holds threads, open files or sessions of ONNX Runtime, which neither a fork nor a pickle has."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def check_process(self) -> None:
        """Check that the present process made this object; its threads do not exist in a fork, and waiting never ends.

        Raises:
            RequestError: Another process did.
        """
        if os.getpid() != self._process:
            raise RequestError(
                f"a {type(self).__name__} of process {self._process} is used in process {os.getpid()}, a fork of it "
                "without its threads; open the bundle in the process that uses it (multiprocessing: method 'spawn')"
            )

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            f"a {type(self).__name__} cannot be pickled or copied, since it holds open files and threads; pass the "
            "bundle's path, and open it there"
        )
