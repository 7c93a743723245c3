"""Configurations that are incomplete or contradict themselves are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import ConfigError, read_config

GOOD: dict[str, Any] = {
    "model_type": "molkv",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "num_experts": 3,
    "expert_key_size": 8,
    "expert_window": 5,
}


def test_a_valid_configuration_is_read_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    config = read_config(tmp_path / "config.json")
    assert (config.num_key_value_heads, config.head_dim, config.expert_intermediate_size) == (4, 8, 48)
    assert config.layers_with_experts == (0, 1)


CASES: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": None}, "missing required field `vocab_size`"),
    ({"num_expert": 4}, "unknown field `num_expert`"),
    ({"model_type": "llama"}, "model_type: found \"llama\", expected 'mole' or 'molkv'"),
    ({"hidden_size": "32"}, "Expected `int`, got `str` - at `$.hidden_size`"),
    ({"hidden_size": 0}, "hidden_size: found 0, expected a number from 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers: found -1"),
    ({"num_hidden_layers": 10**20}, "num_hidden_layers"),
    ({"num_experts": -1}, "num_experts: found -1, expected 0"),
    ({"num_key_value_heads": 3}, "num_attention_heads: found 4, expected a multiple of num_key_value_heads (3)"),
    ({"head_dim": 7}, "head_dim: found 7, expected an even number"),
    ({"expert_key_size": 7}, "expert_key_size: found 7, expected an even number"),
    ({"expert_key_size": 0}, "expert_key_size: found 0"),
    ({"expert_window": 0}, "expert_window: found 0"),
    ({"expert_layers": [1, 0]}, "expert_layers: found [1, 0], expected ascending layer indices below 2"),
    ({"expert_layers": [2]}, "expert_layers: found [2]"),
    ({"expert_gate": "tanh"}, "at `$.expert_gate`"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps: found 0.0"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_a_bad_field_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_file_that_is_not_a_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(No such file or directory\)"):
        read_config(tmp_path / "config.json")
