"""Which layer, and what in it, is the first to compute something else than the source model?"""

from __future__ import annotations

import msgspec
import numpy as np

from molkv_bundle import Bundle, DenseDtype, Floats, KVDtype, MolkvError
from molkv_export.modeling import Tap
from molkv_export.parity.phases import PHASES, Ids
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.runners import ONNX_REFERENCE
from molkv_export.parity.tapped import TappedGraph, Values, source_values, widened
from molkv_runtime import Generator, Target

# Of a value's error, relative to its usual size, by the dtype of the dense weights and of the KV cache. "Bisection" in
# docs/parity.md says why.
MAX_RELATIVE_ERROR: dict[DenseDtype, float] = {
    "float32": 2e-5,
    "float16": 2e-5,
    "int8": 0.2,
    "int4": 0.2,
    "qdq-int8": 0.2,
}
_OF_CACHE: dict[KVDtype, float] = {"float32": 0.0, "float16": 2e-2, "int8": 0.4}

BISECTED_PHASES = ("one-shot prefill", "step-by-step decode")


class TapError(msgspec.Struct, frozen=True):
    """How far one value inside the graph is from the source model's."""

    layer: int | None  # None: behind the last layer
    branch: str
    error: float  # the largest over all positions, relative to the value's usual size
    position: int  # where it is the largest

    @property
    def name(self) -> str:
        """Name the place in words."""
        where = "behind the last layer" if self.layer is None else f"layer {self.layer}"
        return f"{where}, {self.branch.replace('_', ' ')}"


class PhaseErrors(msgspec.Struct, frozen=True):
    """The errors of all values in one phase, in the order in which they are computed."""

    phase: str
    errors: list[TapError]

    limit: float

    @property
    def first(self) -> TapError | None:
        """The first that is more than rounding."""
        return next((error for error in self.errors if not error.error <= self.limit), None)


class Bisection(msgspec.Struct, frozen=True):
    """The outcome of comparing layer by layer."""

    limit: float
    phases: list[PhaseErrors]
    culprit: str  # empty: nothing leaves the expected rounding
    second_opinion: str  # what ONNX's own evaluator says about the culprit; empty: was not asked


def bisect(bundle: Bundle, target: Target, model: SourceModel, ids: Ids) -> Bisection:
    """Compare the values inside the layers with those of the source model, which is rounded as the bundle is.

    Args:
        bundle: What is to be found out about.
        target: Where the graph is run, as in `runners.load_generator`.
        model: Its source.
        ids: The text to compare on, [T].

    Raises:
        BundleError: The bundle is too old to be looked into.
    """
    limit = _limit(bundle)
    phases = [phase_errors(bundle, target, model, ids, phase) for phase in BISECTED_PHASES]
    culprits = [(phase.phase, phase.first) for phase in phases if phase.first is not None]
    if not culprits:
        return Bisection(limit, phases, "", "")
    phase, first = culprits[0]
    culprit = (
        f"{phase}: {first.name}: relative error {first.error:.1e} at position {first.position}, "
        f"expected at most {limit:g}"
    )
    opinion = ""
    if target.provider != ONNX_REFERENCE:
        opinion = _second_opinion(bundle, target, model, ids, phase, first)
    return Bisection(limit, phases, culprit, opinion)


def phase_errors(bundle: Bundle, target: Target, model: SourceModel, ids: Ids, phase: str) -> PhaseErrors:
    """Compare all values inside the layers in one phase; arguments as in `bisect`."""
    taps = model.model.taps()
    graph = TappedGraph(bundle, target, taps)
    generator = Generator(bundle, graph=graph)
    PHASES[phase](generator, ids)
    expected = source_values(model, ids, generator.store)
    return PhaseErrors(phase, compare_values(taps, expected, graph.values()), _limit(bundle))


def _limit(bundle: Bundle) -> float:
    graph = bundle.graph()
    return max(MAX_RELATIVE_ERROR[graph.dense_dtype], _OF_CACHE[graph.kv_dtype])


def compare_values(taps: list[Tap], expected: Values, found: Values) -> list[TapError]:
    """Compare values by name, in the order in which they are computed."""
    errors = []
    for tap in taps:
        by_position = _relative_errors(expected[tap.name], found[tap.name])
        # A NaN is the worst of all.
        by_position = np.where(np.isnan(by_position), np.inf, by_position)
        position = int(np.argmax(by_position))
        errors.append(TapError(tap.layer, tap.branch, float(by_position[position]), position))
    return errors


def _relative_errors(expected: Floats, found: Floats) -> Floats:
    """Give, for every position of values [T, size], the size of the error relative to the root mean square size.

    The mean is over all positions: where a single vector happens to be small, its error is not.
    """
    if expected.shape[-1] != found.shape[-1]:  # scores: one side sees more experts than the other
        width = max(expected.shape[-1], found.shape[-1])
        expected, found = widened(expected, width), widened(found, width)
    seen = np.isfinite(expected)  # scores of experts that are not seen are -inf, and must be so on both sides
    exact = np.where(seen, expected, 0).astype(np.float64)
    difference = np.where(seen, found, 0) - exact
    difference[seen != (found != -np.inf)] = np.inf
    usual = np.sqrt(np.square(exact).sum(axis=-1).mean())
    errors: Floats = np.sqrt(np.square(difference).sum(axis=-1)) / max(usual, np.finfo(np.float32).tiny)
    return errors


def _second_opinion(bundle: Bundle, target: Target, model: SourceModel, ids: Ids, phase: str, first: TapError) -> str:
    """Ask ONNX's evaluator, which is slow: steps behind the one that is wrong are left out."""
    if phase != BISECTED_PHASES[0]:
        ids = ids[: first.position + 1]
        there = phase_errors(bundle, target, model, ids, phase).first
        if there is None:  # errors are relative to a mean, which is another one now
            return ""
        first = there
    try:
        again = phase_errors(bundle, Target(ONNX_REFERENCE), model, ids, phase).first
    except MolkvError as error:
        return f"onnx.reference cannot tell: {error}"
    if again is None:
        return f"onnx.reference computes the same graph as PyTorch does: the fault is in provider {target.provider!r}"
    if (again.layer, again.branch) == (first.layer, first.branch):
        return (
            "onnx.reference computes the same: the fault is in the graph or in what the host feeds it, not in a kernel"
        )
    return f"onnx.reference differs first elsewhere: {again.name}, relative error {again.error:.1e}"
