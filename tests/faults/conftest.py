"""A published checkpoint to damage."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.models import CONFIGS, random_model
from tests.molkv_export.checkpoints.published import published_config, training_tensors, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a published MoLE with random weights, in training form."""
    model = random_model(msgspec.structs.replace(CONFIGS["mole"], expert_intermediate_size=48))
    return write_folder(tmp_path / "mole", published_config(model.config), training_tensors(model))
