"""The programs of the native driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def native_program(name: str) -> Path:
    """Return a test program of the build folder in MOLKV_NATIVE_BUILD. Skip the test if the variable is not set."""
    return _build_folder() / "tests" / name


def native_tool() -> Path:
    """Return the tool `molkv` of the same build folder."""
    return _build_folder() / "molkv"


def _build_folder() -> Path:
    build = os.environ.get("MOLKV_NATIVE_BUILD")
    if build is None:
        pytest.skip("MOLKV_NATIVE_BUILD is not set to a build folder of runtimes/native")
    return Path(build)
