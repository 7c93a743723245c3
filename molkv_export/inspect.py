"""What is in a bundle."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from molkv_export.terminal import human_bytes
from molkv_runtime.bundle import Bundle
from molkv_runtime.config import ModelConfig
from molkv_runtime.manifest import GraphInfo, Provenance, StoreInfo
from molkv_runtime.memory import cache_bytes, window_bytes


class Sizes(msgspec.Struct, frozen=True):
    """Bytes of a bundle, by where they are while it runs."""

    ram_dense_weights: int  # the graph and its weights
    ram_kv_cache: int  # of one sequence over the whole context
    ram_expert_window: int  # of one sequence; 0 for MoLE and dense models
    storage_expert_store: int
    bytes_per_token: int  # read from storage for every new token


class Inspection(msgspec.Struct, frozen=True):
    """Everything worth knowing about a bundle without running it."""

    path: str
    model: ModelConfig
    sizes: Sizes
    store: StoreInfo
    graphs: dict[str, GraphInfo]
    files: dict[str, int]  # bytes
    provenance: Provenance


def inspect(path: Path) -> Inspection:
    """Look into a bundle without loading its graph.

    Raises:
        BundleError: The folder is not a complete bundle.
    """
    bundle = Bundle(path)
    manifest, config = bundle.manifest, bundle.config
    sizes = {name: info.size for name, info in manifest.files.items()}
    shards = {shard.file for shard in manifest.store.shards}
    return Inspection(
        path=str(path),
        model=config,
        sizes=Sizes(
            ram_dense_weights=sum(size for name, size in sizes.items() if name.startswith("model."))
            * (2 if bundle.graph().dense_dtype == "float16" else 1),  # made float32 when it is loaded
            ram_kv_cache=cache_bytes(config, config.max_position_embeddings, bundle.graph().kv_dtype),
            ram_expert_window=window_bytes(config, config.max_position_embeddings),
            storage_expert_store=sum(sizes[name] for name in shards),
            bytes_per_token=manifest.store.stride,
        ),
        store=manifest.store,
        graphs=manifest.graphs,
        files=sizes,
        provenance=manifest.provenance,
    )


def print_inspection(found: Inspection, console: Console) -> None:
    """Print what was found for people."""
    config, store, sizes = found.model, found.store, found.sizes
    console.print(Text(found.path, style="bold"))
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
    records = sum(shard.count for shard in store.shards)
    layout = " ".join(f"{field.name}{list(field.shape)}".replace(" ", "") for field in store.fields)
    console.print(
        _pairs(
            "expert store",
            {
                "dtype": store.dtype,
                "records": f"{records} of {store.stride} bytes in {len(store.shards)} shard(s)",
                "record": layout,
            },
        )
    )
    for profile, graph in found.graphs.items():
        console.print(_graph_table(profile, graph))
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


def _pairs(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=Text(f"\n{title}"), title_justify="left", show_header=False, box=box.SIMPLE, show_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _graph_table(profile: str, graph: GraphInfo) -> Table:
    file = graph.files[-1]
    title = f"\ngraph, profile {profile}: {file.file}, dense weights {graph.dense_dtype}"
    if graph.block_size:
        title += f" in blocks of {graph.block_size}"
    if graph.kv_dtype != "float32":
        title += f", KV cache {graph.kv_dtype}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "name", "layers", "dtype", "shape"):
        table.add_column(column, no_wrap=column == "name")
    for kind, tensors in (("input", file.inputs), ("output", file.outputs)):
        # One row for the same tensor of all layers.
        layers = Counter((re.sub(r"\.\d+", ".{l}", t.name), t.dtype, t.shape) for t in tensors)
        for (name, dtype, shape), count in layers.items():
            number = str(count) if "{l}" in name else ""
            table.add_row(kind, name, number, dtype, Text(f"[{', '.join(map(str, shape))}]"))
    return table
