"""Fixtures of the driver's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_runtime import Generator


@pytest.fixture
def generator(bundles: Callable[..., Path]) -> Generator:
    """Load the small MoLKV model."""
    return Generator(bundles("molkv"))
