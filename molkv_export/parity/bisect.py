"""Find the first layer, and the branch in this layer, whose values differ from those of the source model.

For this, the graph is loaded with additional outputs: the values inside the layers that have the names of the reference
model's taps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor

from molkv_bundle import HIDDEN, Arrays, Bundle, BundleError, DenseDtype, Floats, KVDtype, MolkvError, WindowDtype
from molkv_export.graph.files import load_graphs, weights_file
from molkv_export.modeling import Tap, tap_name
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_export.parity.runners import ONNX_REFERENCE, PHASES
from molkv_export.source.model import Ids, SourceModel
from molkv_runtime import BoundCall, Call, Generator, Graph, Store, Target, open_session, session_options

Values = dict[str, Floats]  # by name of the tap, each [T, ...]

_EMBEDS = tap_name("residual", 0)  # an input of the graph, not a value inside it
_LOGITS = tap_name("logits")

# Limits of a value's error, relative to the value's root mean square norm, by dtype of the dense weights. Below are the
# limits for the KV cache and the expert window. docs/parity.md, "Bisection", explains the numbers.
MAX_RELATIVE_ERROR: dict[DenseDtype, float] = {
    "float32": 2e-5,
    "float16": 2e-5,
    "int8": 0.2,
    "int4": 0.2,
    "qdq-int8": 0.2,
}
_OF_CACHE: dict[KVDtype, float] = {"float32": 0.0, "float16": 2e-2, "int8": 0.4}
_OF_WINDOW: dict[WindowDtype, float] = {"float32": 0.0, "int8": 3e-2}
BISECTED_PHASES = ("one-shot prefill", "step-by-step decode")


def source_values(model: SourceModel, ids: Ids, store: Store) -> Values:
    """Run the source model over token ids [T], with records rounded as in a store; return the values at its taps."""
    found: Values = {}
    handles: list[Any] = []
    taps = model.model.taps()

    def watch(tap: Tap) -> None:
        def keep(_module: object, inputs: tuple[Any, ...], output: Tensor) -> None:
            found[tap.name] = tap.value(inputs, output)[0].numpy().copy()

        handles.append(tap.module.register_forward_hook(keep))

    for tap in taps:
        if tap.name != _LOGITS:  # `model.logits` below returns the logits, which it computes in pieces
            watch(tap)
    try:
        found[_LOGITS] = model.logits(ids, store)
    finally:
        for handle in handles:
            handle.remove()
    return _in_order_of_size(found, taps)


class TappedGraph:
    """A bundle's dense graph that also outputs the values at the taps. This class implements `molkv_runtime.Graph`."""

    def __init__(self, bundle: Bundle, target: Target, taps: list[Tap]) -> None:
        """Load the graph again, with an additional output for each tap.

        Raises:
            BundleError: The graph has no value with the name of a tap, because an older version exported the graph.
        """
        self._taps, self._is_half = taps, bundle.graph().kv_dtype == "float16"
        self._hides_by_number = bundle.graph().is_static
        graphs = load_graphs(bundle)
        step = min(graphs)  # longer static graphs have no logits output, so only single steps are compared
        self._names = [tap.name for tap in taps if tap.name not in (_EMBEDS, _LOGITS)]
        there = {output for node in graphs[step].graph.node for output in node.output}
        if missing := [name for name in self._names if name not in there]:
            file = bundle.path / bundle.graph().files[0].file
            raise BundleError(
                f"{file}: has no value named {missing[0]!r}, so the graph cannot be compared "
                "layer by layer; export the model again"
            )
        number = onnx.TensorProto.FLOAT16 if self._is_half else onnx.TensorProto.FLOAT
        for name in self._names:
            graphs[step].graph.output.append(onnx.helper.make_tensor_value_info(name, number, None))
        self._graph: Graph
        if target.provider == ONNX_REFERENCE:
            self._graph = ReferenceGraph(graphs, weights_file(bundle).parent)
        else:
            self._graph = _Sessions(graphs, weights_file(bundle).parent, target)
        self._taken: dict[str, list[npt.NDArray[Any]]] = {}

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers to all inputs and outputs, and new arrays to the values at the taps."""
        if "logits" not in outputs:
            return self._graph.bind(length, inputs, outputs)
        dtype = np.float16 if self._is_half else np.float32
        taps = [tap for tap in self._taps if tap.name in self._names]
        inside: Arrays = {tap.name: np.empty(_shape(tap, inputs), dtype) for tap in taps}
        call = self._graph.bind(length, inputs, {**outputs, **inside})
        taken = {_EMBEDS: inputs["inputs_embeds"], **inside, _LOGITS: outputs["logits"]}
        return _TappedCall(call, taken, self._taken)

    def values(self) -> Values:
        """Return the values at the taps in all calls so far; the calls must belong to one sequence."""
        found = {name: _stack(parts) for name, parts in self._taken.items()}
        for tap in self._taps if self._hides_by_number else ():
            if tap.kept:
                found[tap.name] = np.where(found[tap.name] < HIDDEN / 2, np.float32(-np.inf), found[tap.name])
        return _in_order_of_size(found, self._taps)


def _shape(tap: Tap, inputs: Arrays) -> tuple[int, ...]:
    if isinstance(tap.size, str):
        return inputs[tap.size].shape
    *places, length, _ = inputs["inputs_embeds"].shape
    if tap.layer is None and "logits_to_keep" in inputs:
        length = int(inputs["logits_to_keep"][0])
    return (*places, length, tap.size)


class _Sessions:
    """ONNX Runtime sessions of graphs that are held in memory."""

    def __init__(self, graphs: dict[int, onnx.ModelProto], folder: Path, target: Target) -> None:
        self._target = target
        options = session_options(target)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._sessions = {
            length: open_session(graph.SerializeToString(), options, target) for length, graph in graphs.items()
        }

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> BoundCall:
        return BoundCall(self._sessions[length], inputs, outputs, self._target)


class _TappedCall:
    def __init__(self, call: Call, arrays: Arrays, taken: dict[str, list[npt.NDArray[Any]]]) -> None:
        self._call, self._arrays, self._taken = call, arrays, taken

    def run(self) -> None:
        self._call.run()
        for name, array in self._arrays.items():
            self._taken.setdefault(name, []).append(array.copy())


def _stack(parts: list[npt.NDArray[Any]]) -> Floats:
    """Join the arrays [1, T, size] or [blocks, C, size] of all calls into one array [positions, size].

    Scores of different calls can have different sizes. Small arrays are padded with -inf, the score of masked experts.
    """
    rows = [part.reshape(-1, part.shape[-1]).astype(np.float32, copy=False) for part in parts]
    width = max(part.shape[-1] for part in rows)
    return np.concatenate([part if part.shape[-1] == width else widened(part, width) for part in rows])


def widened(scores: Floats, width: int) -> Floats:
    """Pad scores [T, n] to [T, width] with -inf, the score of a masked expert."""
    return np.pad(scores, ((0, 0), (0, width - scores.shape[-1])), constant_values=-np.inf)


def _in_order_of_size(values: Values, taps: list[Tap]) -> Values:
    """Sort the expert scores of each position, largest first; keep as many scores as a position can attend to.

    The graph has scores in the order of the host's slots, which the source model does not know.
    """
    unordered = {tap.name: tap.kept for tap in taps if tap.kept}
    largest = {name: -np.sort(-values[name], axis=-1)[:, :kept] for name, kept in unordered.items()}
    return {**values, **{name: widened(scores, unordered[name]) for name, scores in largest.items()}}


class TapError(msgspec.Struct, frozen=True):
    """Difference between the graph and the source model at one tap."""

    layer: int | None  # None: after the last layer
    branch: str
    error: float  # the largest over all positions, relative to the value's root mean square norm
    position: int  # position of the largest error

    @property
    def name(self) -> str:
        """Layer and branch in words."""
        where = "after the last layer" if self.layer is None else f"layer {self.layer}"
        return f"{where}, {self.branch.replace('_', ' ')}"


class PhaseErrors(msgspec.Struct, frozen=True):
    """Errors at all taps in one phase, in the order of computation."""

    phase: str
    errors: list[TapError]
    limit: float

    @property
    def first(self) -> TapError | None:
        """First error above the limit, or None."""
        return next((error for error in self.errors if not error.error <= self.limit), None)


class Bisection(msgspec.Struct, frozen=True):
    """Result of a comparison layer by layer."""

    limit: float
    phases: list[PhaseErrors]
    culprit: str  # description of the first value whose error is above the limit; empty if there is none
    second_opinion: str  # result of the same comparison with ONNX's evaluator; empty if the evaluator was not run


def bisect(bundle: Bundle, target: Target, model: SourceModel, ids: Ids) -> Bisection:
    """Compare the values at the taps with those of the source model, rounded as in the bundle.

    Args:
        bundle: Bundle to examine.
        target: Provider and options that run the graph, as in `runners.load_generator`.
        model: Source model of the bundle.
        ids: Token ids of the text to run, [T].

    Raises:
        BundleError: The graph has no value with the name of a tap, because an older version exported the graph.
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
    """Compare the values at all taps in one phase; arguments as in `bisect`."""
    taps = model.model.taps()
    graph = TappedGraph(bundle, target, taps)
    generator = Generator(bundle, graph=graph)
    PHASES[phase](generator, ids)
    expected = source_values(model, ids, generator.store)
    return PhaseErrors(phase, compare_values(taps, expected, graph.values()), _limit(bundle))


def _limit(bundle: Bundle) -> float:
    graph = bundle.graph()
    return max(MAX_RELATIVE_ERROR[graph.dense_dtype], _OF_CACHE[graph.kv_dtype], _OF_WINDOW[graph.window_dtype])


def compare_values(taps: list[Tap], expected: Values, found: Values) -> list[TapError]:
    """Compare the values at all taps, given by name; return the errors in the order of `taps`."""
    errors = []
    for tap in taps:
        by_position = _relative_errors(expected[tap.name], found[tap.name])
        # NaN counts as the largest error.
        by_position = np.where(np.isnan(by_position), np.inf, by_position)
        position = int(np.argmax(by_position))
        errors.append(TapError(tap.layer, tap.branch, float(by_position[position]), position))
    return errors


def _relative_errors(expected: Floats, found: Floats) -> Floats:
    """Return the norm of the error at each position [T] of values [T, size], relative to their root mean square norm.

    The mean is over all positions, because small vectors have errors as large as those of large vectors.
    """
    if expected.shape[-1] != found.shape[-1]:  # scores of more experts on one side
        width = max(expected.shape[-1], found.shape[-1])
        expected, found = widened(expected, width), widened(found, width)
    seen = np.isfinite(expected)  # scores of masked experts are -inf, and must be -inf on both sides
    exact = np.where(seen, expected, 0).astype(np.float64)
    difference = np.where(seen, found, 0) - exact
    difference[seen != (found != -np.inf)] = np.inf
    usual = np.sqrt(np.square(exact).sum(axis=-1).mean())
    errors: Floats = np.sqrt(np.square(difference).sum(axis=-1)) / max(usual, np.finfo(np.float32).tiny)
    return errors


def _second_opinion(bundle: Bundle, target: Target, model: SourceModel, ids: Ids, phase: str, first: TapError) -> str:
    """Repeat the comparison with ONNX's evaluator, and say where the fault is.

    The evaluator is slow, so in a decode phase only the positions up to the one with the largest error are run.
    """
    if phase != BISECTED_PHASES[0]:
        ids = ids[: first.position + 1]
        there = phase_errors(bundle, target, model, ids, phase).first
        if there is None:  # errors are relative to a mean, which differs for the shorter text
            return ""
        first = there
    try:
        again = phase_errors(bundle, Target(ONNX_REFERENCE), model, ids, phase).first
    except MolkvError as error:
        return f"onnx.reference failed, so the cause is unknown: {error}"
    if again is None:
        return f"onnx.reference agrees with PyTorch on this graph: the fault is in provider {target.provider!r}"
    if (again.layer, again.branch) == (first.layer, first.branch):
        return (
            "onnx.reference has the same error: the fault is in the graph or in the inputs from the host, "
            "not in the provider"
        )
    return f"in onnx.reference, the first wrong value is another one: {again.name}, relative error {again.error:.1e}"
