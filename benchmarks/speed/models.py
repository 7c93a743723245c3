"""The models of the comparison, which have the size of MoLE-160M and random weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.exporting import export_with_store_of
from benchmarks.store.model import model_config, write_checkpoint
from molkv_bundle import DenseDtype, LookupExpertConfig, MoleConfig, RowDtype
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


def bundle(folder: Path, name: str, dtype: str, experts: RowDtype) -> Path:
    """Return the folder of a bundle. The dense floor has no experts, so its name never has their dtype."""
    experts = "float16" if name == "dense" else experts
    return folder / (f"{name}-{dtype}" if experts == "float16" else f"{name}-{dtype}-experts-{experts}")


def make_bundle(folder: Path, name: str, dtype: DenseDtype, experts: RowDtype) -> Path:
    """Write a bundle and its checkpoint if they do not exist yet. Return the folder of the bundle.

    Bundles of one model and one dtype of experts share the files of their store by hard links.
    """
    path = bundle(folder, name, dtype, experts)
    if path.exists():
        return path
    checkpoint = make_checkpoint(folder, name)
    console = Console(stderr=True)
    console.print(f"writing {path}")
    others = [other for each in DTYPES if (other := bundle(folder, name, each, experts)).exists()]
    if others:
        export_with_store_of(others[0], checkpoint, path, GraphOptions(dtype))
    else:
        row_dtype: RowDtype = "float16" if name == "dense" else experts
        export(checkpoint, path, graph=GraphOptions(dtype), experts_dtype=row_dtype, console=console)
    return path


def make_checkpoint(folder: Path, name: str) -> Path:
    """Write a checkpoint if it does not exist yet. Return its folder."""
    checkpoint = folder / f"{name}-checkpoint"
    if not checkpoint.exists():
        write_checkpoint(configs()[name], checkpoint)
    return checkpoint
