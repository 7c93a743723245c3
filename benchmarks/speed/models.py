"""The models of the comparison, which have the size of MoLE-160M and random weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.store.model import model_config, write_checkpoint
from molkv_bundle import DenseDtype, LookupExpertConfig, MoleConfig
from molkv_export import GraphOptions, export

DTYPES: tuple[DenseDtype, ...] = ("float32", "int8", "int4")


def configs() -> dict[str, LookupExpertConfig]:
    """Return the configurations of MoLKV, MoLE and the dense floor, which is the same model without experts.

    The models have 12 layers of hidden size 768, 4 experts per layer with keys of size 64, an expert window of 64, and
    50,304 token ids.
    """
    molkv = msgspec.structs.replace(model_config(1), vocab_size=50_304)
    mole = MoleConfig(**{**msgspec.structs.asdict(molkv), "model_type": "mole"})
    return {"molkv": molkv, "mole": mole, "dense": msgspec.structs.replace(mole, num_experts=0, expert_layers=None)}


def make_bundles(folder: Path) -> None:
    """Write the checkpoints and bundles that do not exist yet, 27 GB in total."""
    for name, config in configs().items():
        checkpoint = folder / f"{name}-checkpoint"
        if not checkpoint.exists():
            write_checkpoint(config, checkpoint)
        for dtype in DTYPES:
            if not bundle(folder, name, dtype).exists():
                export(checkpoint, bundle(folder, name, dtype), graph=GraphOptions(dtype), console=Console(stderr=True))


def bundle(folder: Path, name: str, dtype: str) -> Path:
    """Return the folder of a bundle."""
    return folder / f"{name}-{dtype}"
