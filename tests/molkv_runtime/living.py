"""Bundles of every mechanism, KV dtype and window, and steps and comparisons of sequences, for several test files."""

from __future__ import annotations

from typing import Any

import numpy as np

from molkv_bundle import Arrays, Floats
from molkv_export import GraphOptions
from molkv_runtime import Sequences

BATCH = 3

# Names of configurations, dtypes of the store, and options of `export`.
BUNDLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "molkv": ("molkv", "float32", {}),
    "int8 KV cache": ("molkv-some-layers", "float32", {"graph": GraphOptions(kv_dtype="int8")}),
    "int8 store and window": ("molkv", "int8", {"graph": GraphOptions(window_dtype="int8")}),
    "float16 store, int8 window": ("molkv", "float16", {"graph": GraphOptions(window_dtype="int8")}),
    "one slot": ("molkv-one-slot", "float32", {}),
    "wide window": ("molkv-wide-window", "float32", {}),
    "mole": ("mole", "float16", {}),
    "dense": ("dense", "float32", {}),
    "coreml float16": (
        "molkv",
        "float16",
        {"profiles": ["coreml"], "graph": GraphOptions(chunk_lengths=(1, 4, 7), dense_dtype="float16")},
    ),
    "nnapi": ("mole", "float32", {"profiles": ["nnapi"]}),
}


def append(state: Sequences, sequence: int, method: str, ids: list[int]) -> Floats:
    """Repeat a call while the other sequences wait."""
    if method != "decode":
        return state.prefill(sequence, ids, all_logits=method == "prefill of all logits")
    active = np.arange(len(state.lengths)) == sequence
    return state.decode(np.where(active, ids[0], 0), active)[[sequence]]


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name
