"""Fixtures of bundles for phones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_export import GraphOptions


@pytest.fixture(scope="session")
def trained(bundles: Callable[..., Path]) -> Path:
    """Return the trained model as a bundle for Android. Its expert store is one file of 22 MB."""
    return bundles("stdlib-mini", "float16", profiles=["nnapi"])


@pytest.fixture(scope="session")
def phone(bundles: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that makes a small bundle for phones, by name of configuration. Tests must not change it."""

    def bundle(name: str = "molkv", dense_dtype: Any = "float32") -> Path:
        profiles = ["coreml"] if dense_dtype == "float16" else ["cpu", "coreml", "nnapi"]
        graph = GraphOptions(dense_dtype, chunk_lengths=(1, 4, 16))
        return bundles(name, "float16", profiles=profiles, graph=graph)

    return bundle
