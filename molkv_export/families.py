"""The families of models that can be exported, and a function that opens a checkpoint of any family."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from molkv_bundle import CheckpointError, ConfigError, KVDtype, decode_json, read_bytes, resolve_location, shown
from molkv_export.checkpoints import gemma4, native, published_mole
from molkv_export.checkpoints.checkpoint import Checkpoint, Reader
from molkv_export.checkpoints.files import CONFIG, file_state, foreign_format, refuse_pointer
from molkv_export.checkpoints.remote import Mirror
from molkv_export.checkpoints.weights import Weights, find_weights, open_file
from molkv_export.graph.build import BuiltGraph, build_graph
from molkv_export.graph.gemma4 import build_gemma4_graph
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.mole import MoleMixer
from molkv_export.graph.molkv import MolkvMixer
from molkv_export.graph.static.build import build_static_graph
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.molkv import StaticMolkvMixer
from molkv_export.modeling import Form, Gemma4ForCausalLM, MoleForCausalLM, MolkvForCausalLM, ReferenceModel


class Family(NamedTuple):
    """The parts of the exporter for one family. `config` is an object of the family's class in `molkv_bundle`."""

    readers: tuple[Reader, ...]
    """Readers of the formats in which the family's models are published."""
    model: Callable[[Any, Form], ReferenceModel]
    """Function (config, form) that creates the reference model."""
    graph: Callable[[Any, DenseFormat], BuiltGraph]
    """Function (config, dtypes of weights and caches) that builds the graph of profile cpu."""
    static_graph: Callable[[Any, type[StaticModules], KVDtype, int], BuiltGraph] | None = None
    """Function (config, modules of the profile, dtype, positions of a call) that builds a static graph.

    `config` has the context length and the expert window of the graph. The function is None if the family's
    `ModelConfig.profiles` has no static profile.
    """
    can_be_calibrated: bool = False
    """Whether scales can be fixed at export, for an int8 KV cache and for qdq-int8.

    If true, the reference model has the method `cached`, and its linear layers have the same names as in the graph.
    There is one exception: the graph may merge the layers for query, key and value into one named `qkv_proj`.
    """
    begins_with_bos: bool = False
    """Whether the models expect that each text begins with the beginning-of-text token."""
    note: str = ""
    """A note that `export` prints for the user; empty for none."""


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
        note="the equations of MoLKV are our interpretation of its paper; to compare them with your own code",
    ),
    "gemma4_text": Family(
        readers=(gemma4,),
        model=Gemma4ForCausalLM,
        graph=build_gemma4_graph,
        can_be_calibrated=True,
        begins_with_bos=True,
    ),
}
"""All families by `model_type`. To add a family, add an entry (docs/architecture.md, "A new family")."""


def reference_model(config: Any, form: Form = "training") -> ReferenceModel:
    """Create the reference model of a configuration, without trained values."""
    return FAMILIES[config.model_type].model(config, form)


def open_checkpoint(place: str | Path) -> Checkpoint:
    """Open a checkpoint, and check the names, shapes and dtypes of its tensors.

    Args:
        place: A folder, or the URL of a remote folder.

    Raises:
        ConfigError: config.json is missing, has an impossible value, or is of an unknown family.
        CheckpointError: The weights are missing, damaged or unsafe, or do not fit the configuration; a remote folder
            cannot be read.
        MissingExtraError: The packages for this kind of URL are not installed.
    """
    place = resolve_location(place)
    if isinstance(place, Path):
        return _open_folder(place, partial(Weights, place, open_file))
    mirror = Mirror(place)
    try:
        return _open_folder(mirror.folder, partial(Weights, mirror.folder, mirror.open_file), mirror)
    except BaseException as error:
        mirror.close()
        mirror.rename_in(error)
        raise


def _open_folder(folder: Path, open_weights: Callable[[], Weights], mirror: Mirror | None = None) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; expected a folder with {CONFIG} and weights")
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
            contents = reader.read_folder(folder, fields, open_weights)
            checkpoint = Checkpoint(folder, contents, FAMILIES[contents.config.model_type].model, mirror)
            checkpoint.states[path] = state
            return checkpoint
    raise ConfigError(
        f"{path}: architectures is {shown(fields.get('architectures'))} and model_type is "
        f"{shown(fields.get('model_type'))}, "
        f"expected {' or '.join(reader.EXPECTED for reader in readers)}"
    )
