"""Fixtures of bundles for phones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_export import GraphOptions, export
from tests.models import STDLIB_MINI


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a bundle for Android. Its expert store is one file of 22 MB."""
    folder = tmp_path_factory.mktemp("phone") / "stdlib-mini.bundle"
    export(STDLIB_MINI, folder, profiles=["nnapi"])
    return folder


@pytest.fixture(scope="session")
def phone(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a small bundle for phones, by name of configuration. Tests must not change it."""
    root = tmp_path_factory.mktemp("phones")

    def bundle(name: str = "molkv", dense_dtype: Any = "float32") -> Path:
        folder = root / f"{name}-{dense_dtype}.bundle"
        if not folder.exists():
            profiles = ["coreml"] if dense_dtype == "float16" else ["cpu", "coreml", "nnapi"]
            graph = GraphOptions(dense_dtype, chunk_lengths=(1, 4, 16))
            export(checkpoints(name), folder, profiles=profiles, graph=graph)
        return folder

    return bundle
