"""Faults in int8 and int4 bundles of stdlib-mini, and whether golden vectors find each one.

`python -m tests.molkv_export.parity.quantized_faults` prints the table in docs/faults.md.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from molkv_bundle import Bundle
from molkv_export import GraphOptions, export
from molkv_export.families import open_checkpoint
from molkv_export.parity.weights import weights_agreement
from molkv_export.source.model import SourceModel
from molkv_runtime import SelfTest, selftest
from tests.models import STDLIB_MINI
from tests.molkv_export.parity.breaking import Apply
from tests.molkv_export.parity.breaking import graph as change_graph

Codes = npt.NDArray[Any]
GRAPHS = {
    "int8": GraphOptions("int8"),
    "int4": GraphOptions("int4", 32),
    "int4, LM head int4": GraphOptions("int4", 32, lm_head_dtype="int4"),
}


_PRODUCTS = {
    "output projection of layer 1": "model.layers.1.self_attn.o_proj",
    "down of layer 3": "model.layers.3.mlp.down_proj",
    "expert queries of layer 0": "model.layers.0.expert_mixer.query_proj",
    "LM head": "lm_head",
}
_MORE_PRODUCTS = {  # for the smallest faults
    "query, key and value of layer 2": "model.layers.2.self_attn.qkv_proj",
    "gate of layer 1": "model.layers.1.mlp.gate_proj",
    "up of layer 2": "model.layers.2.mlp.up_proj",
}


class QuantizedFault(NamedTuple):
    """A fault that is introduced on purpose."""

    what: str
    graph: str  # a key of GRAPHS
    apply: Apply
    # By golden vectors. False: smaller than activation rounding. None: near the limits, or larger than another fault of
    # the same weights, which they see.
    is_seen: bool | None


class Outcome(NamedTuple):
    """The checks that found a fault."""

    selftest: SelfTest | None  # None: was not run
    weights: str  # difference of the weights, from `validate`


def faults(graph: str) -> Iterator[QuantizedFault]:
    """Yield the faults for bundles with these dense weights; with an LM head in int4, only those of the LM head."""
    options = GRAPHS[graph]
    has_int4_head = (options.dense_dtype, options.lm_head_dtype) == ("int4", "int4")
    products = {"LM head": _PRODUCTS["LM head"]} if has_int4_head else {**_PRODUCTS, **_MORE_PRODUCTS}
    for title, product in products.items():
        in_blocks = options.dense_dtype == "int4" and (product != "lm_head" or has_int4_head)
        edits = _smallest(product, in_blocks)
        edits += _large(in_blocks) if title in _PRODUCTS else []
        edits += _of_blocks(product) if in_blocks else []
        for what, part, edit, is_seen in edits:
            yield QuantizedFault(f"{title}: {what}", graph, _initializer(f"{product}.{part}", edit), is_seen)


_Edit = tuple[str, str, Callable[[Codes], Codes], bool | None]


def _smallest(product: str, in_blocks: bool) -> list[_Edit]:
    if product in _PRODUCTS.values():
        is_swap_seen: bool | None = True
    else:
        is_swap_seen = False if product.endswith("qkv_proj") else None
    return [
        ("columns 3 and 4 swapped", "weight", _swapped(_columns(in_blocks)), is_swap_seen),
        ("first scale x 128/127", "weight_scale", _first_scale(128 / 127), False),
    ]


def _large(in_blocks: bool) -> list[_Edit]:
    return [
        ("every column one further", "weight", lambda codes: np.roll(codes, 1, _columns(in_blocks)), None),
        ("every scale that of the column before", "weight_scale", lambda scale: np.roll(scale, 1, 0), None),
        ("first scale twice as large", "weight_scale", _first_scale(2), None),
    ]


def _columns(in_blocks: bool) -> int:
    """Return the axis of columns in [out, blocks, bytes] or [in, out]."""
    return 0 if in_blocks else 1


def _of_blocks(product: str) -> list[_Edit]:
    # Swapped columns are a smaller fault. It is seen in these products.
    is_large_seen = None if product in _PRODUCTS.values() else True
    return [
        ("every zero point one further", "weight", _next_code, is_large_seen),
        (
            "zero point of one group one further",
            "weight",
            _next_code_of_a_group,
            None if "query" in product else False,
        ),
        ("halves of each byte swapped", "weight", _halves_swapped, is_large_seen),
    ]


def _initializer(name: str, edit: Callable[[Codes], Codes]) -> Apply:
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        edited = np.ascontiguousarray(edit(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(edited, name))

    return change_graph(change)


def _swapped(axis: int) -> Callable[[Codes], Codes]:
    def edit(codes: Codes) -> Codes:
        order = np.arange(codes.shape[axis])
        order[[3, 4]] = order[[4, 3]]
        return codes.take(order, axis)

    return edit


def _first_scale(factor: float) -> Callable[[Codes], Codes]:
    def edit(scale: Codes) -> Codes:
        scale.reshape(-1)[0] *= np.float32(factor)
        return scale

    return edit


def _next_code(codes: Codes) -> Codes:
    return np.minimum(codes & 15, 14) + 1 | (np.minimum(codes >> 4, 14) + 1) << 4


def _halves_swapped(codes: Codes) -> Codes:
    return (codes >> 4 | codes << 4).astype(np.uint8)


def _next_code_of_a_group(codes: Codes) -> Codes:
    codes[3, 0] = _next_code(codes[3, 0])
    return codes


def examine(fault: QuantizedFault, sound: Path, folder: Path, *, with_selftest: bool = True) -> Outcome:
    """Break a copy of a correct bundle, correct all hashes, and run the checks on it."""
    path = shutil.copytree(sound, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        fault.apply(path, patch)
    return Outcome(selftest(path) if with_selftest else None, weights_failure(path))


def weights_failure(path: Path) -> str:
    """Compare the weights of a bundle with those of stdlib-mini."""
    bundle = Bundle(path)
    with open_checkpoint(STDLIB_MINI) as checkpoint:
        return weights_agreement(bundle, SourceModel(checkpoint, bundle)).failure


def ratios(result: SelfTest) -> tuple[float, float]:
    """Return the largest difference and the relative L2, each divided by its limit."""
    max_abs = max(max(p.max_abs_logit, p.max_abs_projection) / p.limits.max_abs for p in result.phases)
    return max_abs, max(phase.relative_l2 / phase.limits.relative_l2 for phase in result.phases)


def main() -> None:
    """Print the table, with a row for each fault."""
    print("| dense | fault | max abs / limit | rel. L2 / limit | wrong tokens | self-test | validate |")
    print("|---|---|---|---|---|---|---|")
    for graph, options in GRAPHS.items():
        with tempfile.TemporaryDirectory() as name:
            export(STDLIB_MINI, Path(name) / "sound", graph=options)
            for fault in faults(graph):
                with tempfile.TemporaryDirectory() as folder:
                    found = examine(fault, Path(name) / "sound", Path(folder))
                assert found.selftest
                max_abs, relative_l2 = ratios(found.selftest)
                wrong = max(phase.certain_tokens - phase.right_tokens for phase in found.selftest.phases)
                verdicts = ["fails" if failures else "passes" for failures in (found.selftest.failures, found.weights)]
                cells = (graph, fault.what, f"{max_abs:.2f}", f"{relative_l2:.2f}", str(wrong), *verdicts)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
