"""Folders and bundles of small Gemma 4 models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_export import export
from tests.molkv_export.gemma4.models import save_multimodal_model, save_text_model

Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def folders(shared: Shared) -> Callable[[str], Path]:
    """Return a function from the name of a variant, or "multimodal", to its folder.

    Tests must not change the folders.
    """

    def folder(name: str) -> Path:
        def make(path: Path) -> None:
            save_multimodal_model(path) if name == "multimodal" else save_text_model(path, name)

        return shared(f"gemma4-{name}", make)

    return folder


@pytest.fixture(scope="session")
def bundle(folders: Callable[[str], Path], shared: Shared) -> Callable[[str], Path]:
    """Return a function from the name of a variant to its bundle in float32. Tests must not change the bundles."""

    def make(name: str) -> Path:
        return shared(f"gemma4-{name}.bundle", lambda path: export(folders(name), path, experts_dtype="float32"))

    return make
