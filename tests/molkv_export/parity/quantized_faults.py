"""Faults to put into sound int8 and int4 bundles of stdlib-mini, and which of them golden vectors find.

`python -m tests.molkv_export.parity.quantized_faults` prints the table in docs/parity.md.
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

from molkv_bundle import DenseDtype
from molkv_export import GraphOptions, export
from molkv_runtime import SelfTest, selftest
from tests.conftest import STDLIB_MINI
from tests.molkv_export.parity.breaking import Apply, graph

Codes = npt.NDArray[Any]
GRAPHS: dict[DenseDtype, GraphOptions] = {"int8": GraphOptions("int8"), "int4": GraphOptions("int4", 32)}
_PRODUCTS = {
    "output projection of layer 1": "model.layers.1.self_attn.o_proj",
    "down of layer 3": "model.layers.3.mlp.down_proj",
    "expert queries of layer 0": "model.layers.0.expert_mixer.query_proj",
    "LM head": "lm_head",
}


class QuantizedFault(NamedTuple):
    """Something broken on purpose."""

    what: str
    dtype: DenseDtype
    apply: Apply
    is_seen: bool | None  # by golden vectors: no is smaller than the rounding of activations, None is near the limits


def faults(dtype: DenseDtype) -> Iterator[QuantizedFault]:
    """Yield the faults of bundles with these dense weights."""
    for title, product in _PRODUCTS.items():
        head = product == "lm_head"
        rows_are_columns = head or dtype == "int4"  # [out, ...]; else [in, out]
        axis = 0 if rows_are_columns else 1
        for what, part, edit, is_seen in (
            ("columns 3 and 4 swapped", "weight", _swapped(axis), True),
            ("every column one further", "weight", lambda codes, axis=axis: np.roll(codes, 1, axis), True),
            ("every scale that of the column before", "weight_scale", lambda scale: np.roll(scale, 1, 0), True),
            ("first scale twice as large", "weight_scale", _first_scale(2), None),
            ("first scale x 128/127", "weight_scale", _first_scale(128 / 127), False),
        ):
            yield QuantizedFault(f"{title}: {what}", dtype, _initializer(f"{product}.{part}", edit), is_seen)
        if dtype == "int4" and not head:
            every, one = f"{title}: every zero point", f"{title}: zero point of one group"
            halves = f"{title}: halves of each byte swapped"
            weight, seen = f"{product}.weight", None if "queries" in title else False
            yield QuantizedFault(f"{every} one further", dtype, _initializer(weight, _next_code), True)
            yield QuantizedFault(f"{one} one further", dtype, _initializer(weight, _next_code_of_a_group), seen)
            yield QuantizedFault(
                halves, dtype, _initializer(weight, lambda c: (c >> 4 | c << 4).astype(np.uint8)), True
            )


def _initializer(name: str, edit: Callable[[Codes], Codes]) -> Apply:
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        edited = np.ascontiguousarray(edit(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(edited, name))

    return graph(change)


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


def examine(fault: QuantizedFault, sound: Path, folder: Path) -> SelfTest:
    """Break a copy of a sound bundle, with all hashes made sound again, and run its self-test."""
    bundle = shutil.copytree(sound, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        fault.apply(bundle, patch)
    return selftest(bundle)


def ratios(result: SelfTest) -> tuple[float, float]:
    """Return the largest difference and the relative L2, each as a part of its limit."""
    max_abs = max(max(p.max_abs_logit, p.max_abs_projection) / p.limits.max_abs for p in result.phases)
    return max_abs, max(phase.relative_l2 / phase.limits.relative_l2 for phase in result.phases)


def main() -> None:
    """Print a row for each fault."""
    print("| dense | fault | max abs / limit | rel. L2 / limit | wrong tokens | self-test |\n|---|---|---|---|---|---|")
    for dtype, options in GRAPHS.items():
        with tempfile.TemporaryDirectory() as name:
            export(STDLIB_MINI, Path(name) / "sound", graph=options)
            for fault in faults(dtype):
                with tempfile.TemporaryDirectory() as folder:
                    result = examine(fault, Path(name) / "sound", Path(folder))
                max_abs, relative_l2 = ratios(result)
                wrong = max(phase.certain_tokens - phase.right_tokens for phase in result.phases)
                found = "fails" if result.failures else "passes"
                cells = (dtype, fault.what, f"{max_abs:.2f}", f"{relative_l2:.2f}", str(wrong), found)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
