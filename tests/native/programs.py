"""The programs of the native driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def native_program(name: str) -> Path:
    """Return a program of the build folder in MOLKV_NATIVE_BUILD. Skip the test if the variable is not set."""
    build = os.environ.get("MOLKV_NATIVE_BUILD")
    if build is None:
        pytest.skip("MOLKV_NATIVE_BUILD is not set to a build folder of runtimes/native")
    return Path(build) / "tests" / name
