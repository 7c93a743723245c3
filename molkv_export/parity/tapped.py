"""Reading the values inside the layers, of the source model and of a bundle's dense graph (names: `graph/taps.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor, nn

from molkv_bundle import HIDDEN, Arrays, Bundle, BundleError, Floats, ModelConfig, for_call
from molkv_export.graph.taps import tap_name, taps
from molkv_export.parity.graphs import load_graphs, weights_file
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_export.parity.phases import Ids
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.runners import ONNX_REFERENCE
from molkv_runtime import BoundCall, Call, Graph, Store, Target, open_session, session_options

Values = dict[str, Floats]  # by the name of the tap, [T, ...]

_EMBEDS = tap_name("residual", 0)  # an input of the graph, not a value inside it


def source_values(model: SourceModel, ids: Ids, store: Store) -> Values:
    """Run the source model, with its records rounded as a store does, over token ids [T]; give what is inside."""
    found: Values = {}
    handles: list[Any] = []

    def keep(name: str, value: Tensor) -> None:
        found[name] = value[0].numpy().copy()

    def after(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _module, _inputs, output: keep(name, output)))

    def before(module: nn.Module, name: str, value: Callable[..., Tensor]) -> None:
        handles.append(module.register_forward_pre_hook(lambda _module, inputs: keep(name, value(*inputs))))

    layer: Any  # torch's types know no attributes of modules in a list
    for index, layer in enumerate(model.model.layers):
        before(layer, tap_name("residual", index), lambda x, *_: x)
        after(layer.input_layernorm, tap_name("input_norm", index))
        after(layer.self_attn, tap_name("attention", index))
        after(layer.post_attention_layernorm, tap_name("post_attention_norm", index))
        after(layer.mlp, tap_name("feed_forward", index))
        if layer.expert_mixer is not None:
            before(layer.expert_mixer, tap_name("expert_scores", index), layer.expert_mixer.scores)
            after(layer.expert_mixer, tap_name("experts", index))
    before(model.model.norm, tap_name("residual"), lambda x: x)
    after(model.model.norm, tap_name("norm"))
    try:
        found[tap_name("logits")] = model.logits(ids, store)
    finally:
        for handle in handles:
            handle.remove()
    return _in_order_of_size(found, model.config)


class TappedGraph:
    """A bundle's dense graph that also gives the values inside; a `molkv_runtime.dense_graph.Graph`."""

    def __init__(self, bundle: Bundle, target: Target) -> None:
        """Load the graph once more, with more outputs.

        Raises:
            BundleError: The graph was made by a version that did not name these values.
        """
        self._config, self._is_half = bundle.config, bundle.graph().kv_dtype == "float16"
        self._hides_by_number = bundle.graph().is_static and bundle.config.has_keys
        graphs = load_graphs(bundle)
        step = min(graphs)  # static graphs for more positions give no logits, and only steps are compared
        names = [tap_name(branch, layer) for layer, branch in taps(self._config)]
        self._names = [name for name in names if name not in (_EMBEDS, tap_name("logits"))]
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
        inside: Arrays = {name: np.empty(self._shape(name, inputs), dtype) for name in self._names}
        call = self._graph.bind(inputs, {**outputs, **inside})
        taken = {_EMBEDS: inputs["inputs_embeds"], **inside, tap_name("logits"): outputs["logits"]}
        return _TappedCall(call, taken, self._taken)

    def _shape(self, name: str, inputs: Arrays) -> tuple[int, ...]:
        *places, length, hidden = inputs["inputs_embeds"].shape
        if name.endswith(tap_name("expert_scores")):
            if self._config.has_keys:
                return inputs["expert_mask"].shape
            return (*places, length, self._config.num_experts)
        if name in (tap_name("residual"), tap_name("norm")) and "logits_to_keep" in inputs:
            length = int(inputs["logits_to_keep"][0])
        return (*places, length, hidden)

    def values(self) -> Values:
        """Give what was inside in all calls so far, which must have been about one sequence."""
        found = {name: _stack(parts) for name, parts in self._taken.items()}
        if self._hides_by_number:
            for name in found:
                if name.endswith(tap_name("expert_scores")):
                    found[name] = np.where(found[name] < HIDDEN / 2, np.float32(-np.inf), found[name])
        return _in_order_of_size(found, self._config)


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


def _in_order_of_size(values: Values, config: ModelConfig) -> Values:
    """Sort the scores of every position, largest first: the graph does not know in which order the host keeps experts.

    A window's worth of them is kept; more are never seen.
    """
    if not config.has_keys:
        return values
    width = config.expert_window * config.num_experts
    names = [tap_name("expert_scores", layer) for layer in config.layers_with_experts]
    largest = {name: -np.sort(-values[name], axis=-1)[:, :width] for name in names}
    return {**values, **{name: widened(scores, width) for name, scores in largest.items()}}
