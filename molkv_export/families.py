"""The families of models that can be exported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from molkv_bundle import KVDtype
from molkv_export.checkpoints import native, published_mole
from molkv_export.checkpoints.checkpoint import Reader
from molkv_export.graph.build import DenseGraph, build_graph
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.mole import MoleExperts
from molkv_export.graph.molkv import MolkvExperts
from molkv_export.graph.static.build import build_static_graph
from molkv_export.graph.static.modules import StaticModules
from molkv_export.graph.static.molkv import StaticMolkvExperts
from molkv_export.modeling import Form, MoleForCausalLM, MolkvForCausalLM, ReferenceModel


class Family(NamedTuple):
    """What the exporter does for one family; `config` is of the family's class in `molkv_bundle`."""

    readers: tuple[Reader, ...]
    """Ways in which its models are published."""
    model: Callable[[Any, Form], ReferenceModel]
    """Makes the reference model: (config, form)."""
    graph: Callable[[Any, DenseFormat], DenseGraph]
    """Builds the graph of the cpu profile: (config, how weights and KV cache are kept)."""
    static_graph: Callable[[Any, type[StaticModules], KVDtype, int], DenseGraph] | None = None
    """Builds a static graph: (config with its context and window, modules of the profile, what it computes in, T).

    None: the family's `ModelConfig.profiles` has none of the static profiles.
    """


FAMILIES: dict[str, Family] = {
    "mole": Family(
        readers=(native, published_mole),
        model=MoleForCausalLM,
        graph=partial(build_graph, make_experts=MoleExperts),
        static_graph=partial(build_static_graph, make_experts=MoleExperts),
    ),
    "molkv": Family(
        readers=(native,),
        model=MolkvForCausalLM,
        graph=partial(build_graph, make_experts=MolkvExperts),
        static_graph=partial(build_static_graph, make_experts=StaticMolkvExperts),
    ),
}
"""By `model_type`. Another family is one more entry (docs/architecture.md, "A new family")."""


def reference_model(config: Any, form: Form = "training") -> ReferenceModel:
    """Make the reference model of a configuration, without values."""
    return FAMILIES[config.model_type].model(config, form)
