"""A reader must provide the names of tensors and the meaning of config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load, save_file

from molkv_bundle import ConfigError
from molkv_export import export
from molkv_export.checkpoints import native
from molkv_export.checkpoints.checkpoint import Contents, ParameterSource
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.weights import Weights
from molkv_export.families import FAMILIES
from tests.molkv_export.checkpoints.stored import stored_values


def _read_folder(folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
    fields = {name: value for name, value in fields.items() if name != "architectures"}
    contents = native.read_folder(folder, fields, open_weights)
    return contents._replace(source=lambda name, shape: ParameterSource(f"net.{name}", shape))


def test_another_checkpoint_format_needs_only_one_more_reader(
    checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = checkpoints("molkv"), tmp_path / "third"
    folder.mkdir()
    fields = {**json.loads((source / CONFIG).read_text()), "architectures": ["Third"]}
    (folder / CONFIG).write_text(json.dumps(fields))
    tensors = load((source / "model.safetensors").read_bytes())
    save_file({f"net.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r'architectures is \["Third"\] and model_type is "molkv", expected'):
        export(folder, tmp_path / "bundle")
    third = SimpleNamespace(
        EXPECTED='architectures ["Third"]',
        matches=lambda fields: fields.get("architectures") == ["Third"],
        read_folder=_read_folder,
    )
    molkv = FAMILIES["molkv"]
    monkeypatch.setitem(FAMILIES, "molkv", molkv._replace(readers=(*molkv.readers, third)))
    found, expected = export(folder, tmp_path / "bundle"), export(source, tmp_path / "ours")
    assert found.model == expected.model
    assert stored_values(tmp_path / "bundle") == stored_values(tmp_path / "ours")
