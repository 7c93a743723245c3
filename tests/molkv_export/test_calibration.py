"""Scales of an int8 KV cache: the calibration texts use the whole range of codes and do not exceed it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from molkv_bundle import Bundle
from molkv_export import GraphOptions, export
from molkv_export.golden import calibration_texts
from molkv_runtime import Generator
from tests.recording import record


@pytest.mark.parametrize("name", ["molkv", "mole"])
def test_calibration_texts_use_the_whole_range_of_codes(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    export(checkpoints(name), tmp_path / "bundle", graph=GraphOptions(kv_dtype="int8"), experts_dtype="float32")
    bundle = Bundle(tmp_path / "bundle")
    config = bundle.config
    generator = Generator(bundle)
    recorder = record(generator)
    largest = {"key": np.zeros(0), "value": np.zeros(0)}
    for ids in calibration_texts(config, bundle.path):
        recorder.bound.clear()
        generator.sequences().prefill(0, ids)
        cache = recorder.bound[0].inputs
        for kind in largest:
            layers = range(config.num_hidden_layers)
            codes = np.stack([cache[f"past_key_values.{layer}.{kind}"][0, :, : len(ids)] for layer in layers])
            assert codes.dtype == np.int8
            found = np.abs(codes.astype(int)).max(axis=2)  # [L, Hkv, head_dim]
            largest[kind] = found if not largest[kind].size else np.maximum(largest[kind], found)
    # The scales have a margin, so the largest code is 127 / 1.1 = 115. Values reach it in every channel. Keys reach it
    # only in some channels, depending on rotation. After the first layer, rounding in earlier layers changes codes.
    assert set(np.unique(largest["value"][0])) == {115}
    assert largest["value"].min() > 105
    assert largest["value"].max() < 125
    assert largest["key"][0].max() == 115
    assert largest["key"].min() > 40


def test_the_same_export_gives_the_same_scales(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(checkpoints("molkv"), tmp_path / name, graph=GraphOptions(kv_dtype="int8"))
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("one", "two"))
    assert first == second
