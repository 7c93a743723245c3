"""The bundles of the benchmark: a MoLKV of the 160M class with random weights, in several formats of one store."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.exporting import export_with_store_of
from benchmarks.store.model import write_checkpoint
from molkv_bundle import MolkvConfig
from molkv_export import GraphOptions, export

FORMATS = {
    "float32": GraphOptions("float32"),
    "int8": GraphOptions("int8"),
    "int4": GraphOptions("int4"),
    "float32, KV cache int8": GraphOptions("float32", kv_dtype="int8"),
}


def make_bundles(config: MolkvConfig, folder: Path) -> dict[str, Path]:
    """Write the checkpoint and the bundles that do not exist yet. Return the folders of the bundles by their format.

    The experts are float16. All bundles share the files of one expert store by hard links.
    """
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        write_checkpoint(config, checkpoint)
    bundles = {name: folder / name.replace(", KV cache ", "-kv-") for name in FORMATS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads are slower if other programs run
    first = bundles["float32"]
    if not first.exists():
        export(checkpoint, first, graph=FORMATS["float32"])
    for name, bundle in bundles.items():
        if not bundle.exists():
            export_with_store_of(first, checkpoint, bundle, FORMATS[name])
    torch.set_num_threads(threads)
    return bundles
