"""Opening a checkpoint of whatever family it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from molkv_bundle import CheckpointError, ConfigError, decode_json, read_bytes, shown
from molkv_export.checkpoints.checkpoint import CONFIG, Checkpoint
from molkv_export.checkpoints.files import file_state, refuse_pointer
from molkv_export.checkpoints.foreign import foreign_format
from molkv_export.checkpoints.weights import find_weights
from molkv_export.families import FAMILIES


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check it as far as names, shapes and dtypes go.

    Raises:
        ConfigError: config.json is missing, impossible, or of no family that is known here.
        CheckpointError: The weights are missing, damaged or unsafe, or do not fit the configuration.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; expected one with {CONFIG} and weights")
    path = folder / CONFIG
    if not os.path.lexists(path) and find_weights(folder) is None and (error := foreign_format(folder)):
        raise error
    refuse_pointer(path)
    state = file_state(path)
    data = read_bytes(path, ConfigError, f"a checkpoint needs a {CONFIG}")
    fields = decode_json(data, dict[str, Any], path, ConfigError)
    readers = {reader.EXPECTED: reader for family in FAMILIES.values() for reader in family.readers}
    for reader in readers.values():
        if reader.matches(fields):
            contents = reader.read_folder(folder, fields)
            checkpoint = Checkpoint(folder, contents, FAMILIES[contents.config.model_type].model)
            checkpoint.states[path] = state
            return checkpoint
    raise ConfigError(
        f"{path}: architectures is {shown(fields.get('architectures'))} and model_type is "
        f"{shown(fields.get('model_type'))}, "
        f"expected {' or '.join(readers)}"
    )
