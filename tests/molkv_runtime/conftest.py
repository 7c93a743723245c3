"""Fixtures of the driver's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_runtime import Generator, Sequences
from tests.molkv_runtime.living import BUNDLES
from tests.molkv_runtime.sessions import VARIANTS


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


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> Generator:
    """Load the small MoLKV model with each dtype of the KV cache."""
    return Generator(bundles("molkv", **VARIANTS[request.param]), prefix_cache_bytes=0)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[Sequences]:
    """Return a list to which each new state is added."""
    made, original = list[Sequences](), Sequences.__init__

    def noted(state: Sequences, *arguments: Any, **options: Any) -> None:
        original(state, *arguments, **options)
        made.append(state)

    monkeypatch.setattr(Sequences, "__init__", noted)
    return made
