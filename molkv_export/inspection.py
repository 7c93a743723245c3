"""Describe a bundle without running it."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Rows
from rich.text import Text

from molkv_bundle import (
    EXPERTS,
    TOKENIZER,
    Bundle,
    Generation,
    GraphFile,
    GraphInfo,
    ModelConfig,
    Provenance,
    Table,
    TensorInfo,
)
from molkv_export.terminal import human_bytes, print_line, timed
from molkv_runtime import cache_bytes, window_bytes

if TYPE_CHECKING:
    from molkv_export.lint import LintResult  # needs the onnx package


_LOG = logging.getLogger(__name__)


class Sizes(msgspec.Struct, frozen=True):
    """Sizes in bytes of a bundle's parts in RAM and storage while one of its profiles runs."""

    ram_dense_weights: int  # for the graphs and their weights
    ram_kv_cache: int  # for one sequence that fills the context
    ram_expert_window: int  # for one sequence; 0 for MoLE and dense models
    storage_expert_store: int
    bytes_per_token: int  # read from storage for every new token


class Acceptance(msgspec.Struct, frozen=True):
    """The number of a graph's nodes that a compiler for phones accepts, by the rules of `lint`."""

    nodes: int
    accepted: int
    partitions: int  # subgraphs that the compiler would compile
    first_reason: str  # the first node that is not accepted, and the reason; empty if all nodes are accepted


class GraphCheck(msgspec.Struct, frozen=True):
    """The operators of one graph, and the number of nodes that each compiler accepts."""

    file: str
    length: int  # positions of a call; 0: any number
    operators: dict[str, int]  # number of nodes by operator
    bytes_in: int  # size of all inputs of a call; 0 if it depends on the call
    bytes_out: int  # size of all outputs of a call; 0 if it depends on the call
    targets: dict[str, Acceptance]  # by compiler


class Inspection(msgspec.Struct, frozen=True):
    """The description of a bundle."""

    path: str
    model: ModelConfig
    sizes: Sizes
    tables: dict[str, Table]
    generation: Generation
    graphs: dict[str, GraphInfo]
    checks: dict[str, list[GraphCheck]] | None  # by profile; None: the onnx package is not installed
    files: dict[str, int]  # size in bytes by name
    provenance: Provenance
    warnings: list[str]  # about missing parts that text generation needs


def inspect(path: str | Path) -> Inspection:
    """Describe a bundle, without running its graphs.

    Raises:
        BundleError: The folder is not a complete bundle.
    """
    bundle = Bundle(path)
    manifest = bundle.manifest
    return Inspection(
        path=str(path),
        model=manifest.model,
        sizes=sizes_of(bundle),
        tables=manifest.tables,
        generation=manifest.generation,
        graphs=manifest.graphs,
        checks=_checks(bundle),
        files={name: info.size for name, info in manifest.files.items()},
        provenance=manifest.provenance,
        warnings=_warnings(bundle),
    )


def sizes_of(bundle: Bundle) -> Sizes:
    """Return the sizes of a bundle for the profile that it was opened with."""
    config, graph = bundle.config, bundle.graph()
    sizes = {name: info.size for name, info in bundle.manifest.files.items()}
    return Sizes(
        ram_dense_weights=(sizes[graph.data] + sum(sizes[file.file] for file in graph.files))
        # ONNX Runtime converts float16 weights to float32 on loading, unless the graph computes in float16.
        * (2 if graph.dense_dtype == "float16" and graph.kv_dtype != "float16" else 1),
        ram_kv_cache=cache_bytes(config, config.max_position_embeddings, graph.kv_dtype),
        ram_expert_window=window_bytes(config, config.max_position_embeddings, graph.window_dtype),
        storage_expert_store=sum(sizes[shard.file] for shard in bundle.manifest.experts.shards),
        bytes_per_token=bundle.manifest.experts.stride,
    )


def print_inspection(found: Inspection, console: Console) -> None:
    """Print a description as tables for people."""
    config, table, sizes = found.model, found.tables[EXPERTS], found.sizes
    print_line(console, found.path, "bold")
    for warning in found.warnings:
        print_line(console, f"warning: {warning}")
    console.print(_pairs("model", {k: str(v) for k, v in msgspec.structs.asdict(config).items() if v is not None}))
    console.print(
        _pairs(
            "sizes",
            {
                "RAM: dense weights": human_bytes(sizes.ram_dense_weights),
                "RAM: KV cache, one sequence of the whole context": human_bytes(sizes.ram_kv_cache),
                "RAM: expert window, one sequence": human_bytes(sizes.ram_expert_window),
                "storage: expert store": human_bytes(sizes.storage_expert_store),
                "read per new token": f"{human_bytes(sizes.bytes_per_token)} (one record)",
            },
        )
    )
    records = sum(shard.count for shard in table.shards)
    layout = " ".join(f"{field.name}{list(field.shape)}".replace(" ", "") for field in table.fields)
    console.print(
        _pairs(
            "expert store",
            {
                "dtype": table.dtype,
                "records": f"{records} of {table.stride} bytes in {len(table.shards)} shard(s)",
                "record": layout,
            },
        )
    )
    console.print(_pairs("generation", _generation(found.generation)))
    for profile, graph in found.graphs.items():
        console.print(_graph_table(profile, graph))
        if found.checks is not None:
            for check in found.checks[profile]:
                console.print(_pairs(f"operators and targets: {check.file}", _described(check)))
    if found.checks is None:
        print_line(console, "\noperators and targets: not shown; run `pip install 'molkv-export[export]'` to see them")
    console.print(_pairs("files", {name: human_bytes(size) for name, size in sorted(found.files.items())}))
    made = found.provenance
    console.print(
        _pairs(
            "provenance",
            {
                "command": made.command,
                "tools": ", ".join(f"{name} {version}" for name, version in made.tools.items()),
                **{f"source {name}": f"sha256 {digest}" for name, digest in made.source.items()},
            },
        )
    )


def _warnings(bundle: Bundle) -> list[str]:
    found = []
    if TOKENIZER not in bundle.manifest.files:
        found.append(f"the bundle has no {TOKENIZER}, so drivers take only token ids, no text")
    if not bundle.manifest.generation.eos_token_ids:
        found.append(
            "the bundle has no eos_token_ids, so generation stops only at the maximum number of tokens; set "
            "eos_token_id in the checkpoint's generation_config.json and export again"
        )
    return found


def _checks(bundle: Bundle) -> dict[str, list[GraphCheck]] | None:
    try:
        from molkv_export.lint import lint_file
    except ModuleNotFoundError:
        return None
    checks: dict[str, list[GraphCheck]] = {}
    with timed(_LOG, "check of operators"):
        for profile, graph in bundle.manifest.graphs.items():
            paths = bundle.with_profile(profile).graph_paths()
            checks[profile] = [_check(file, lint_file(paths[file.length])) for file in graph.files]
    return checks


def _check(file: GraphFile, results: Sequence[LintResult]) -> GraphCheck:
    taken, given = (sum(map(_nbytes, tensors)) if file.length else 0 for tensors in (file.inputs, file.outputs))
    targets: dict[str, Acceptance] = {}
    for found in results:
        first = next((f"{finding.node} ({finding.operator}): {finding.reason}" for finding in found.findings), "")
        targets[found.compiler] = Acceptance(found.nodes, found.accepted, found.partitions, first)
    return GraphCheck(file.file, file.length, results[0].operators, taken, given, targets)


def _nbytes(tensor: TensorInfo) -> int:
    return np.dtype(tensor.dtype).itemsize * math.prod(int(size) for size in tensor.shape)


def _described(check: GraphCheck) -> dict[str, str]:
    counts = sorted(check.operators.items(), key=lambda item: -item[1])
    rows = {"operators": ", ".join(f"{count} {name}" for name, count in counts)}
    if check.length:
        rows["host to graph in a call"] = human_bytes(check.bytes_in)
        rows["graph to host in a call"] = human_bytes(check.bytes_out)
    for target, found in check.targets.items():
        rows[target] = f"takes {found.accepted} of {found.nodes} nodes in {found.partitions} partition(s)"
        if found.first_reason:
            rows[target] += f"; the first node that it does not take: {found.first_reason}"
    return rows


def _generation(found: Generation) -> dict[str, str]:
    sampling = msgspec.structs.asdict(found.sampling)
    return {
        "ends at": ", ".join(map(str, found.eos_token_ids)) or "no token",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in sampling.items()),
        "chat template": found.chat_template or "none",
    }


def _pairs(title: str, rows: dict[str, str]) -> Rows:
    table = Rows(title=Text(f"\n{title}"), title_justify="left", show_header=False, box=box.SIMPLE, show_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _graph_table(profile: str, graph: GraphInfo) -> Rows:
    file = graph.files[0]
    title = f"\ngraph, profile {profile}: {file.file}, dense weights {graph.dense_dtype}"
    if graph.block_size:
        title += f" in blocks of {graph.block_size}"
    if graph.kv_dtype != "float32":
        title += f", KV cache {graph.kv_dtype}"
    if graph.window_dtype != "float32":
        title += f", expert window {graph.window_dtype}"
    table = Rows(title=Text(title), title_justify="left", box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "name", "layers", "dtype", "shape"):
        table.add_column(column, no_wrap=column == "name")
    for kind, tensors in (("input", file.inputs), ("output", file.outputs)):
        # The same tensor of all layers is one row of the table.
        layers = Counter((re.sub(r"\.\d+", ".{l}", t.name), t.dtype, t.shape) for t in tensors)
        for (name, dtype, shape), count in layers.items():
            number = str(count) if "{l}" in name else ""
            table.add_row(kind, Text(name), number, dtype, Text(f"[{', '.join(map(str, shape))}]"))
    return table
