"""A wrong number of layers in a Gemma 4 configuration is named, not a field that depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import ConfigError
from molkv_export.checkpoints.gemma4 import read_folder
from molkv_export.checkpoints.weights import Weights

FULL = "full_attention"
FIELDS: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": 97,
    "vocab_size_per_layer_input": 97,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": [FULL, FULL],
    "per_layer_config": {"0": {"head_dim": 64}, "1": {"head_dim": 64}},
}


class ReadError(Exception):
    """The configuration was accepted, and the tensors are read."""


def _no_weights() -> Weights:
    raise ReadError


def test_the_right_number_of_layers_is_accepted() -> None:
    with pytest.raises(ReadError):
        read_folder(Path("folder"), FIELDS, _no_weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": "2"}, r"Expected `int`, got `str` - at `\$.num_hidden_layers`"),
        ({"num_hidden_layers": 1.5}, r"Expected `int`, got `float` - at `\$.num_hidden_layers`"),
        ({"num_hidden_layers": None}, "missing required field `num_hidden_layers`"),
        ({"num_hidden_layers": 0, "layer_types": None}, "num_hidden_layers: found 0, expected"),
        ({"layer_types": []}, r"layer_types: found 0 layers, expected num_hidden_layers \(2\)"),
        ({"layer_types": [], "per_layer_config": None}, r"layer_types: found 0 layers, expected num_hidden_layers"),
        ({"layer_types": [FULL] * 3}, r"layer_types: found 3 layers, expected num_hidden_layers \(2\)"),
    ],
)
def test_a_wrong_number_of_layers_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_folder(Path("folder"), {**FIELDS, **fields}, _no_weights)
