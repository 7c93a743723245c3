"""Reading the values inside the layers, of the source model and of a bundle's dense graph (names: `graph/taps.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor

from molkv_bundle import HIDDEN, Arrays, Bundle, BundleError, Floats, for_call
from molkv_export.modeling import Tap, tap_name
from molkv_export.parity.graphs import load_graphs, weights_file
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_export.parity.phases import Ids
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.runners import ONNX_REFERENCE
from molkv_runtime import BoundCall, Call, Graph, Store, Target, open_session, session_options

Values = dict[str, Floats]  # by the name of the tap, [T, ...]

_EMBEDS = tap_name("residual", 0)  # an input of the graph, not a value inside it
_LOGITS = tap_name("logits")


def source_values(model: SourceModel, ids: Ids, store: Store) -> Values:
    """Run the source model, with its records rounded as a store does, over token ids [T]; return what is inside."""
    found: Values = {}
    handles: list[Any] = []
    taps = model.model.taps()

    def watch(tap: Tap) -> None:
        def keep(_module: object, inputs: tuple[Any, ...], output: Tensor) -> None:
            found[tap.name] = tap.value(inputs, output)[0].numpy().copy()

        handles.append(tap.module.register_forward_hook(keep))

    for tap in taps:
        if tap.name != _LOGITS:  # they come in pieces
            watch(tap)
    try:
        found[_LOGITS] = model.logits(ids, store)
    finally:
        for handle in handles:
            handle.remove()
    return _in_order_of_size(found, taps)


class TappedGraph:
    """A bundle's dense graph that also gives the values inside; a `molkv_runtime.Graph`."""

    def __init__(self, bundle: Bundle, target: Target, taps: list[Tap]) -> None:
        """Load the graph once more, with more outputs: those values that the source model has, too.

        Raises:
            BundleError: The graph was made by a version that did not name these values.
        """
        self._taps, self._is_half = taps, bundle.graph().kv_dtype == "float16"
        self._hides_by_number = bundle.graph().is_static
        graphs = load_graphs(bundle)
        step = min(graphs)  # static graphs for more positions give no logits, and only steps are compared
        self._names = [tap.name for tap in taps if tap.name not in (_EMBEDS, _LOGITS)]
        there = {output for node in graphs[step].graph.node for output in node.output}
        if missing := [name for name in self._names if name not in there]:
            file = bundle.path / bundle.graph().files[0].file
            raise BundleError(
                f"{file}: names no value {missing[0]!r}, so it cannot be compared "
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

    def bind(self, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers to all inputs and outputs, and memory of our own to the values inside."""
        if "logits" not in outputs:
            return self._graph.bind(inputs, outputs)
        dtype = np.float16 if self._is_half else np.float32
        taps = [tap for tap in self._taps if tap.name in self._names]
        inside: Arrays = {tap.name: np.empty(_shape(tap, inputs), dtype) for tap in taps}
        call = self._graph.bind(inputs, {**outputs, **inside})
        taken = {_EMBEDS: inputs["inputs_embeds"], **inside, _LOGITS: outputs["logits"]}
        return _TappedCall(call, taken, self._taken)

    def values(self) -> Values:
        """Return what was inside in all calls so far, which must have been about one sequence."""
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
    """Graphs in ONNX Runtime, from memory."""

    def __init__(self, graphs: dict[int, onnx.ModelProto], folder: Path, target: Target) -> None:
        options = session_options(target)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._sessions = {
            length: open_session(graph.SerializeToString(), options, target) for length, graph in graphs.items()
        }

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        return BoundCall(for_call(self._sessions, inputs), inputs, outputs)


class _TappedCall:
    def __init__(self, call: Call, arrays: Arrays, taken: dict[str, list[npt.NDArray[Any]]]) -> None:
        self._call, self._arrays, self._taken = call, arrays, taken

    def run(self) -> None:
        self._call.run()
        for name, array in self._arrays.items():
            self._taken.setdefault(name, []).append(array.copy())


def _stack(parts: list[npt.NDArray[Any]]) -> Floats:
    """Join arrays [1, T, size] or [blocks, C, size] to one [T in all, size].

    Scores of blocks can be of different width; they are filled up with experts that are not seen.
    """
    rows = [part.reshape(-1, part.shape[-1]).astype(np.float32, copy=False) for part in parts]
    return np.concatenate([widened(part, max(part.shape[-1] for part in rows)) for part in rows])


def widened(scores: Floats, width: int) -> Floats:
    """Fill scores [T, any width] up with experts that are not seen."""
    return np.pad(scores, ((0, 0), (0, width - scores.shape[-1])), constant_values=-np.inf)


def _in_order_of_size(values: Values, taps: list[Tap]) -> Values:
    """Sort scores that are in any order, largest first, and keep as many as a position ever sees."""
    unordered = {tap.name: tap.kept for tap in taps if tap.kept}
    largest = {name: -np.sort(-values[name], axis=-1)[:, :kept] for name, kept in unordered.items()}
    return {**values, **{name: widened(scores, unordered[name]) for name, scores in largest.items()}}
