"""ONNX Runtime sessions: their options, loading of graphs, and the providers that run the nodes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import onnxruntime

from molkv_bundle import ArgumentError, ProviderError, one_line
from molkv_runtime import providers

_CPU = "CPUExecutionProvider"


class Target(NamedTuple):
    """The provider that runs the graphs, and its options."""

    provider: str = "cpu"  # a preset of `providers.PRESETS`
    options: providers.Options = MappingProxyType({})  # the provider's options; they override the preset's
    required: bool = False  # whether it is an error if another provider runs some of the nodes
    threads: int | None = None  # threads of one operator; None: ONNX Runtime decides (one per physical core)


class Placement(msgspec.Struct, frozen=True):
    """The part of a graph that one provider runs."""

    provider: str  # ONNX Runtime's name of the provider
    nodes: int
    partitions: int  # number of compiled partitions; 0 for the CPU provider, which runs nodes one by one


CPU = Target()


def check_version(oldest: str) -> None:
    """Check that ONNX Runtime is not older than a graph's `min_onnxruntime`.

    Raises:
        ProviderError: ONNX Runtime is older.
    """
    wanted = [int(part) for part in oldest.split(".")]
    if [int(part) for part in re.findall(r"[0-9]+", onnxruntime.__version__)][: len(wanted)] < wanted:
        raise ProviderError(
            f"onnxruntime is {onnxruntime.__version__}, expected {oldest} or newer: the graph of this bundle was not "
            f"tested with older versions; pip install 'onnxruntime>={oldest}'"
        )


def session_options(target: Target = CPU, model: str = "") -> onnxruntime.SessionOptions:
    """Return the options of a session.

    Args:
        target: The provider that runs the graph, and its options.
        model: A name that is unique to this model, for the folder of compiled models; empty: no such folder.

    Raises:
        ProviderError: The provider is not available, or the folder for compiled models cannot be created.
        ArgumentError: The provider does not know an option, or there are more threads than cores.
    """
    cores = os.cpu_count() or 1
    threads = target.threads
    if threads is not None and not 0 < threads <= cores:
        raise ArgumentError("threads", threads, f"1 to {cores} (the cores of this machine)")
    preset = providers.resolve(target.provider)
    providers.check_options(target.provider, target.options)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # no error logs, because each error also raises an exception
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
    """Create and return the cache folder of this model. A shared folder could return entries of another model."""
    try:
        folder = Path.home() / ".cache" / "molkv" / model[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise ProviderError(
            f"provider {provider!r} needs a folder for compiled models, but {Path('~/.cache/molkv')} cannot be created "
            f"({error}); choose a folder with --provider-option {option}=FOLDER"
        ) from error
    return str(folder)


def open_session(
    model: Path | bytes, options: onnxruntime.SessionOptions, target: Target
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Raises:
        ProviderError: The provider cannot load the graph, or leaves nodes to other providers although
            `target.required` is set.
    """
    where = model if isinstance(model, Path) else "the graph"
    try:
        # From a path, ONNX Runtime maps external data into memory; from bytes, it would copy the data.
        session = onnxruntime.InferenceSession(str(model) if isinstance(model, Path) else model, options)
    except Exception as error:  # ONNX Runtime raises many exception types, none of them public
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
            f"{where}: provider {target.provider!r} leaves {elsewhere.total()} nodes to other providers ({operators}), "
            "expected none because the provider is required"
        )


def placements(session: onnxruntime.InferenceSession) -> list[Placement]:
    """Return the providers that run the nodes of a graph, the provider with the most nodes first."""
    nodes: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for group in session.get_provider_graph_assignment_info():
        nodes[group.ep_name] += len(group.get_nodes())
        groups[group.ep_name] += 1
    return [Placement(name, count, 0 if name == _CPU else groups[name]) for name, count in nodes.most_common()]


def describe_placements(found: Mapping[int, Sequence[Placement]]) -> str:
    """Return a text that says where nodes run. `found` has the placements by the number of positions of a call."""
    described = []
    for length, places in found.items():
        parts = [
            f"{place.nodes} nodes on {place.provider}"
            + (f" in {place.partitions} partition(s)" if place.partitions else "")
            for place in places
        ]
        described.append((f"calls of {length}: " if length else "") + ", ".join(parts))
    return "; ".join(described)
