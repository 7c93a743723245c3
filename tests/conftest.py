"""Checkpoints and bundles that the tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import RowDtype
from molkv_export import export
from tests.models import CONFIGS, STDLIB_MINI, lookup_form, random_model, save_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the checkpoint folder of a configuration by name; `NAME/lookup` for its lookup form."""
    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        folder = root / name.replace("/", "-")
        if not folder.exists():
            model = random_model(CONFIGS[name.removesuffix("/lookup")])
            save_checkpoint(lookup_form(model) if name.endswith("/lookup") else model, folder)
        return folder

    return checkpoint


@pytest.fixture(scope="session")
def bundles(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the bundle of a configuration by name and dtype. Tests must not change it; they copy it."""
    root = tmp_path_factory.mktemp("bundles")

    def bundle(name: str, dtype: RowDtype = "float32") -> Path:
        folder = root / f"{name.replace('/', '-')}-{dtype}"
        if not folder.exists():
            export(checkpoints(name), folder, experts_dtype=dtype)
        return folder

    return bundle


@pytest.fixture(scope="session")
def stdlib_mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a float16 bundle."""
    folder = tmp_path_factory.mktemp("trained") / "stdlib-mini.bundle"
    export(STDLIB_MINI, folder)
    return folder
