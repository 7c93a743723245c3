"""`validate` finds every fault in int8 and int4 graphs; golden vectors find faults larger than rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_runtime import selftest
from tests.molkv_export.parity.quantized_faults import (
    GRAPHS,
    QuantizedFault,
    examine,
    faults,
    ratios,
    weights_failure,
)


@pytest.fixture
def sound(bundles: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda graph: bundles("stdlib-mini", "float16", graph=GRAPHS[graph])


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_sound_bundle_passes(graph: str, sound: Callable[[str], Path]) -> None:
    result = selftest(sound(graph))
    assert result.failures == []
    assert max(ratios(result)) < 0.8
    for phase in result.phases:
        assert phase.right_tokens == phase.certain_tokens > 0.25 * phase.positions
    assert weights_failure(sound(graph)) == ""


FAULTS = [fault for graph in GRAPHS for fault in faults(graph)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.graph}-{fault.what}")
def test_a_fault_is_found(fault: QuantizedFault, sound: Callable[[str], Path], tmp_path: Path) -> None:
    found = examine(fault, sound(fault.graph), tmp_path, with_selftest=fault.is_seen is not None)
    assert found.weights
    if found.selftest:
        assert bool(found.selftest.failures) == fault.is_seen
