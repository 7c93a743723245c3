"""The test programs of the JavaScript driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def js_program(name: str) -> Path:
    """Return a test program of the build folder in MOLKV_JS_BUILD. Skip the test if the variable is not set."""
    build = os.environ.get("MOLKV_JS_BUILD")
    if build is None:
        pytest.skip("MOLKV_JS_BUILD is not set to the folder .build of runtimes/js")
    return Path(build) / name
