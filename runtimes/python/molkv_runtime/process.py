"""Objects that belong to the process that made them."""

from __future__ import annotations

import os
from typing import NoReturn

from molkv_bundle import RequestError


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
