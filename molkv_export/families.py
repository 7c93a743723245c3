"""The families of models that can be exported, and opening a checkpoint of any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from molkv_bundle import CheckpointError, ConfigError, KVDtype, decode_json, read_bytes, shown
from molkv_export.checkpoints import native, published_mole
from molkv_export.checkpoints.checkpoint import CONFIG, Checkpoint, Reader
from molkv_export.checkpoints.files import file_state, foreign_format, refuse_pointer
from molkv_export.checkpoints.weights import find_weights
from molkv_export.graph.build import BuiltGraph, build_graph
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.mole import MoleMixer
from molkv_export.graph.molkv import MolkvMixer
from molkv_export.graph.static.build import build_static_graph
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.molkv import StaticMolkvMixer
from molkv_export.modeling import Form, MoleForCausalLM, MolkvForCausalLM, ReferenceModel


class Family(NamedTuple):
    """What the exporter does for one family; `config` is of the family's class in `molkv_bundle`."""

    readers: tuple[Reader, ...]
    """Ways in which its models are published."""
    model: Callable[[Any, Form], ReferenceModel]
    """Makes the reference model: (config, form)."""
    graph: Callable[[Any, DenseFormat], BuiltGraph]
    """Builds the graph of the cpu profile: (config, how weights and KV cache are kept)."""
    static_graph: Callable[[Any, type[StaticModules], KVDtype, int], BuiltGraph] | None = None
    """Builds a static graph: (config with its context and window, modules of the profile, what it computes in, T).

    None: the family's `ModelConfig.profiles` has none of the static profiles.
    """
    can_be_calibrated: bool = False
    """Whether scales can be fixed at export, for an int8 KV cache and for qdq-int8.

    The reference model then has `cached`, and its products have the names of the graph's, but for query, key and value,
    which may be packed as `qkv_proj`.
    """
    note: str = ""
    """What a user should know of a model that was exported; empty: nothing."""


FAMILIES: dict[str, Family] = {
    "mole": Family(
        readers=(native, published_mole),
        model=MoleForCausalLM,
        graph=partial(build_graph, mixer=MoleMixer),
        static_graph=partial(build_static_graph, mixer=MoleMixer),
        can_be_calibrated=True,
    ),
    "molkv": Family(
        readers=(native,),
        model=MolkvForCausalLM,
        graph=partial(build_graph, mixer=MolkvMixer),
        static_graph=partial(build_static_graph, mixer=StaticMolkvMixer),
        can_be_calibrated=True,
        note="MoLKV is our reading of its paper; to compare with your own code",
    ),
}
"""By `model_type`. Another family is one more entry (docs/architecture.md, "A new family")."""


def reference_model(config: Any, form: Form = "training") -> ReferenceModel:
    """Make the reference model of a configuration, without values."""
    return FAMILIES[config.model_type].model(config, form)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check it as far as names, shapes and dtypes go.

    Raises:
        ConfigError: config.json is missing, impossible, or of no family that is known here.
        CheckpointError: The weights are missing, damaged or unsafe, or do not fit the configuration.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; expected one with {CONFIG} and weights")
    path = folder / CONFIG
    if not os.path.lexists(path) and find_weights(folder) is None and (error := foreign_format(folder)):
        raise error
    refuse_pointer(path)
    state = file_state(path)
    data = read_bytes(path, ConfigError, f"a checkpoint needs a {CONFIG}")
    fields = decode_json(data, dict[str, Any], path, ConfigError)
    found = {id(reader): reader for family in FAMILIES.values() for reader in family.readers}
    readers = list(found.values())
    for reader in readers:
        if reader.matches(fields):
            contents = reader.read_folder(folder, fields)
            checkpoint = Checkpoint(folder, contents, FAMILIES[contents.config.model_type].model)
            checkpoint.states[path] = state
            return checkpoint
    raise ConfigError(
        f"{path}: architectures is {shown(fields.get('architectures'))} and model_type is "
        f"{shown(fields.get('model_type'))}, "
        f"expected {' or '.join(reader.EXPECTED for reader in readers)}"
    )
