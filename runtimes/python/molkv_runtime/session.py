"""Making ONNX Runtime sessions, and telling where their nodes run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import onnxruntime

from molkv_bundle import ProviderError, RequestError, one_line
from molkv_runtime import providers

_CPU = "CPUExecutionProvider"


class Target(NamedTuple):
    """Where graphs are to run."""

    provider: str = "cpu"  # a preset of `providers.PRESETS`
    options: providers.Options = MappingProxyType({})  # of the provider, beside those of the preset
    required: bool = False  # whether it is an error if some nodes run elsewhere
    threads: int | None = None  # inside an operator; None leaves it to ONNX Runtime (one per physical core)


class Placement(NamedTuple):
    """What a provider runs of a graph."""

    provider: str  # ONNX Runtime's name
    nodes: int
    partitions: int  # that it has compiled; the CPU provider runs nodes one by one


CPU = Target()


def check_version(oldest: str) -> None:
    """Check that ONNX Runtime is not older than a graph's `min_onnxruntime`.

    Raises:
        ProviderError: It is.
    """
    wanted = [int(part) for part in oldest.split(".")]
    if [int(part) for part in re.findall(r"[0-9]+", onnxruntime.__version__)][: len(wanted)] < wanted:
        raise ProviderError(
            f"onnxruntime is {onnxruntime.__version__}, expected {oldest} or newer, which the graph of this bundle was "
            f"run with; pip install 'onnxruntime>={oldest}'"
        )


def session_options(target: Target = CPU, model: str = "") -> onnxruntime.SessionOptions:
    """Make the options of a session.

    Args:
        target: Where the graph is to run.
        model: What tells this model from others, for a folder with what a provider has compiled; empty: none.

    Raises:
        ProviderError: The provider is not there, or there is no place for what it compiles.
        RequestError: It does not know an option, or there are more threads than cores.
    """
    cores = os.cpu_count() or 1
    threads = target.threads
    if threads is not None and not 0 < threads <= cores:
        raise RequestError(f"threads is {threads}, expected 1 to {cores} (the cores of this machine)")
    preset = providers.resolve(target.provider)
    providers.check_options(target.provider, target.options)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.intra_op_num_threads = threads or 0
    config = {"session.record_ep_graph_assignment_info": "1", **preset.config}
    for name, value in config.items():
        options.add_session_config_entry(name, value)
    chosen = dict(preset.options)
    if preset.threads:
        chosen[preset.threads] = str(threads or cores)
        options.intra_op_num_threads = 1
    if preset.cache and model and preset.cache not in target.options:
        chosen[preset.cache] = _cache_folder(model, target.provider, preset.cache)
    providers.add_provider(options, preset, chosen | dict(target.options))
    return options


def _cache_folder(model: str, provider: str, option: str) -> str:
    """Make a folder for this model alone: of a provider's cache it depends on the model whether it is stale."""
    try:
        folder = Path.home() / ".cache" / "molkv" / model[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # there is no home
        raise ProviderError(
            f"provider {provider!r} needs a folder for what it compiles, and {Path('~/.cache/molkv')} cannot be made "
            f"({error}); name one with --provider-option {option}=FOLDER"
        ) from error
    return str(folder)


def open_session(
    model: Path | bytes, options: onnxruntime.SessionOptions, target: Target
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Raises:
        ProviderError: The provider refuses it, or does not run all of it and has to.
    """
    where = model if isinstance(model, Path) else "the graph"
    try:
        # By path, not by bytes: external data is then mapped instead of copied.
        session = onnxruntime.InferenceSession(str(model) if isinstance(model, Path) else model, options)
    except Exception as error:  # ONNX Runtime raises many kinds, none of them public
        raise ProviderError(f"{where}: provider {target.provider!r} cannot load it: {one_line(error)}") from error
    if target.required:
        _check_placement(session, target, where)
    return session


def _check_placement(session: onnxruntime.InferenceSession, target: Target, where: Path | str) -> None:
    wanted = providers.PRESETS[target.provider].provider
    elsewhere = Counter(
        node.op_type
        for group in session.get_provider_graph_assignment_info()
        if group.ep_name != wanted
        for node in group.get_nodes()
    )
    if elsewhere:
        operators = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common(5))
        raise ProviderError(
            f"{where}: provider {target.provider!r} leaves {elsewhere.total()} nodes to others ({operators}), but all "
            "of them are required to run on it"
        )


def placements(session: onnxruntime.InferenceSession) -> list[Placement]:
    """Tell where the nodes of a graph run, most of them first."""
    nodes: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for group in session.get_provider_graph_assignment_info():
        nodes[group.ep_name] += len(group.get_nodes())
        groups[group.ep_name] += 1
    return [Placement(name, count, 0 if name == _CPU else groups[name]) for name, count in nodes.most_common()]


def describe_placements(found: Mapping[int, Sequence[Placement]]) -> str:
    """Say in words where the nodes of graphs run, which are given by the length of a call."""
    described = []
    for length, places in found.items():
        parts = [
            f"{place.nodes} nodes on {place.provider}" + (f" in {place.partitions}" if place.partitions else "")
            for place in places
        ]
        described.append((f"calls of {length}: " if length else "") + ", ".join(parts))
    return "; ".join(described)
