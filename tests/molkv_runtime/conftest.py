"""Fixtures of the driver's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_runtime import Generator
from tests.molkv_runtime.living import BUNDLES


@pytest.fixture
def generator(bundles: Callable[..., Path]) -> Generator:
    """Load the small MoLKV model."""
    return Generator(bundles("molkv"))


@pytest.fixture
def opened(bundles: Callable[..., Path]) -> Callable[[str], Generator]:
    """Return a function that opens one of `living.BUNDLES`."""

    def generator(name: str) -> Generator:
        config, dtype, options = BUNDLES[name]
        return Generator(bundles(config, dtype, **options))

    return generator
