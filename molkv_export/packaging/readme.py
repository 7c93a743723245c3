"""Write the README of a package and the build files of its asset packs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import jinja2

from molkv_bundle import (
    HIDDEN,
    NF4_LEVELS,
    ROW_FORMATS,
    Golden,
    LookupExpertConfig,
    Manifest,
    TensorInfo,
)
from molkv_export.packaging.layout import AppFolder, Limits, PackageInfo
from molkv_export.terminal import human_bytes
from molkv_runtime import PRESETS, cache_bytes, window_bytes

_PROVIDERS = {"android": ("cpu", "xnnpack", "qnn", "nnapi"), "ios": ("cpu", "coreml")}


class TensorRow(NamedTuple):
    """A row of a table in the README: an input or output of one or more layers."""

    name: str  # with {l} in place of the layer number
    layers: list[int]
    dtype: str
    shape: tuple[int | str, ...]


class ShardRow(NamedTuple):
    """A row of a table in the README: a shard."""

    file: str
    first_row: int
    records: int
    start: int  # byte offset of the first record
    part: AppFolder


def readme(manifest: Manifest, info: PackageInfo, limits: Limits, golden: Golden) -> str:
    """Return a README that explains how an app runs this package, with program text and limits for the self-test."""
    graph = manifest.graphs[info.profile]
    config = graph.restrict(manifest.model)
    inputs = {tensor.name for tensor in graph.files[0].inputs}
    # The programs in the templates work for MoLE and MoLKV only. Other families get tables without programs.
    template = f"{info.target}.md" if isinstance(config, LookupExpertConfig) else "tables.md"
    return (
        _environment()
        .get_template(template)
        .render(
            manifest=manifest,
            table=manifest.experts,
            info=info,
            limits=limits,
            graph=graph,
            config=config,
            chunks=graph.lengths[1:],
            tables=[(file, tensor_rows(file.inputs), tensor_rows(file.outputs)) for file in graph.files],
            shards=_shard_rows(manifest, info),
            offsets=_offsets(manifest),
            rows=ROW_FORMATS[manifest.experts.dtype],
            nf4_levels=[float(level) for level in NF4_LEVELS],
            hidden=HIDDEN,
            has_window="expert_mask" in inputs,
            rotated="expert_rotary_cos" in inputs,
            cache_bytes=cache_bytes(config, config.max_position_embeddings, graph.kv_dtype),
            window_bytes=window_bytes(config, config.max_position_embeddings) // (2 if info.half else 1),
            tolerances={name: golden.limits_beside(PRESETS[name].max_abs) for name in _PROVIDERS[info.target]},
            providers=PRESETS,
            onnxruntime=_onnxruntime(manifest),
        )
    )


def _onnxruntime(manifest: Manifest) -> str:
    """Return the version of ONNX Runtime that was installed at export; if it is unknown, return a default version.

    Only digits and dots are accepted, because the version becomes program text.
    """
    found = manifest.provenance.tools.get("onnxruntime", "")
    return found if re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", found) else "1.24.0"


def build_file(part: AppFolder) -> str:
    """Return the `build.gradle.kts` of an asset pack."""
    return _environment().get_template("build.gradle.kts").render(part=part)


def _environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("molkv_export.packaging"),
        autoescape=False,  # Markdown and program text
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(bytes=human_bytes, span=span, short=lambda x: f"{x:g}")
    return templates


def span(numbers: Iterable[int]) -> str:
    """Return ascending numbers as short text, such as "0 to 3" or "1, 4"."""
    found = list(numbers)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found))


def tensor_rows(tensors: Iterable[TensorInfo]) -> list[TensorRow]:
    """Return one row for each input or output. If several layers have the same tensor, they share a row."""
    found: dict[str, TensorRow] = {}
    for tensor in tensors:
        layer = re.search(r"\d+", tensor.name)
        name = tensor.name.replace(layer[0], "{l}") if layer else tensor.name
        row = found.setdefault(name, TensorRow(name, [], tensor.dtype, tensor.shape))
        if layer:
            row.layers.append(int(layer[0]))
    return list(found.values())


def _shard_rows(manifest: Manifest, info: PackageInfo) -> list[ShardRow]:
    parts = {name: part for part in info.parts for name in part.files}
    return [
        ShardRow(shard.file, shard.first_row, shard.count, shard.data_offset, parts[shard.file])
        for shard in manifest.experts.shards
    ]


def _offsets(manifest: Manifest) -> dict[str, list[int]]:
    """Return the byte offsets of the fields of a record by kind of field, in the order of the layers that have it."""
    found: dict[str, list[int]] = {}
    for field in manifest.experts.fields:
        found.setdefault(field.name.partition(".")[0], []).append(field.offset)
    return found
