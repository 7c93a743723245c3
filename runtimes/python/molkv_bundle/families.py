"""The families of models that a bundle can hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from molkv_bundle.config import ModelConfig
from molkv_bundle.errors import ConfigError, MolkvError
from molkv_bundle.files import decode_json, read_bytes, shown
from molkv_bundle.gemma4 import Gemma4Config
from molkv_bundle.mole import MoleConfig
from molkv_bundle.molkv import MolkvConfig

FAMILIES: dict[str, type[ModelConfig]] = {
    "mole": MoleConfig,
    "molkv": MolkvConfig,
    "gemma4_text": Gemma4Config,
}
"""The configuration class of each family, by `model_type`. A new family adds an entry (docs/architecture.md)."""


def family_of(fields: Mapping[str, Any], source: str, error: type[MolkvError]) -> type[ModelConfig]:
    """Return the configuration class for the fields of a configuration.

    Args:
        fields: The fields of the configuration.
        source: The file that contains the fields, for the message.
        error: The exception to raise.

    Raises:
        error: The field `model_type` is missing or unknown.
    """
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        found = shown(name) if "model_type" in fields else "nothing"
        raise error(f"{source}: model_type: found {found}, expected {' or '.join(map(repr, FAMILIES))}")
    return FAMILIES[name]


def model_config(fields: Mapping[str, Any], path: Path) -> ModelConfig:
    """Return the configuration with these fields, which were read from the file `path`.

    Raises:
        ConfigError: A field is missing, unknown or has an impossible value.
    """
    family = family_of(fields, str(path), ConfigError)
    try:
        return msgspec.convert(fields, family)
    except ValueError as error:  # msgspec.ValidationError and ConfigError are ValueErrors
        raise ConfigError(f"{path}: {error}") from error


def read_config(path: Path) -> ModelConfig:
    """Return the configuration in a `config.json`.

    Raises:
        ConfigError: The file is missing, is not JSON, or a field is missing, unknown or has an impossible value.
    """
    data = read_bytes(path, ConfigError, "a checkpoint needs a config.json")
    return model_config(decode_json(data, dict[str, Any], path, ConfigError), path)
