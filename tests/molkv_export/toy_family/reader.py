"""Reader of toy checkpoints. They also hold an image tower, whose tensors are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from molkv_bundle import model_config
from molkv_export.checkpoints.checkpoint import Contents, ParameterSource
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.weights import Weights

EXPECTED = 'architectures ["Toy"]'
IGNORED = "model.vision_tower."
LANGUAGE_MODEL = "model.language_model."


def published_name(name: str) -> str:
    """Return the name that the files use for a parameter of the reference model."""
    return name.replace("model.", LANGUAGE_MODEL, 1) if name.startswith("model.") else name


def matches(fields: Mapping[str, Any]) -> bool:
    """See `Reader`."""
    return fields.get("architectures") == ["Toy"]


def read_folder(folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
    """See `Reader`."""
    config = model_config({name: value for name, value in fields.items() if name != "architectures"}, folder / CONFIG)

    def source(name: str, shape: tuple[int, ...]) -> ParameterSource:
        return ParameterSource(published_name(name), shape)

    return Contents(config, "lookup", open_weights(), source, lambda name: name.startswith(IGNORED), {})
