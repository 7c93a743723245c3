"""The configuration of MoLE and MoLKV for a model without experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import MoleConfig, MolkvConfig
from molkv_export import export
from tests.models import CONFIGS, random_model, save_checkpoint

_EXPERTS: dict[str, Any] = {
    "num_experts": 0,
    "expert_layers": [],
    "expert_intermediate_size": 0,
    "expert_key_size": 0,
    "expert_window": 0,
    "expert_qk_norm": False,
    "expert_rope": False,
    "expert_gate": "none",
}


@pytest.mark.parametrize("without", [{"num_experts": 0}, {"expert_layers": ()}, {"num_experts": 0, "expert_window": 9}])
@pytest.mark.parametrize(("family", "kind"), [("molkv", MolkvConfig), ("mole", MoleConfig)])
def test_a_model_without_experts_says_so_in_every_field(
    without: dict[str, Any], family: str, kind: type[MolkvConfig | MoleConfig]
) -> None:
    fields = {name: getattr(CONFIGS[family], name) for name in kind.__struct_fields__}
    config = kind(**{**fields, **without})
    assert {name: getattr(config, name) for name in _EXPERTS} == {**_EXPERTS, "expert_layers": ()}
    assert config.layers_with_experts == ()


def test_the_manifest_of_a_dense_model_has_zeros(tmp_path: Path) -> None:
    manifest = export(save_checkpoint(random_model(CONFIGS["dense"]), tmp_path / "checkpoint"), tmp_path / "bundle")
    model = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["model"]
    assert {name: model[name] for name in _EXPERTS} == _EXPERTS
    assert manifest.graphs["cpu"].expert_window == 0
