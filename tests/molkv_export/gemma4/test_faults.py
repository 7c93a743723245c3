"""A wrong graph of Gemma 4 fails validation, and the comparison layer by layer names the place of the fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from molkv_bundle import Arrays, ModelConfig, rotary_tables
from molkv_export import Scope, validate
from molkv_runtime import calls, selftest
from tests.manifests import replace_file
from tests.molkv_export.gemma4.models import BASE

pytestmark = pytest.mark.slow

Folders = Callable[[str], Path]
SCOPE = Scope(sequences=1, continuations=1, new_tokens=4, text_length=40)
CONTEXT = BASE["max_position_embeddings"]


class Graph:
    """A graph that can be changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph

    def nodes(self, kind: str, layer: int | None = None) -> list[onnx.NodeProto]:
        """Return the nodes of an operator, of one layer or of all."""
        where = "" if layer is None else f"layers.{layer}/"
        return [node for node in self.graph.node if node.op_type == kind and where in node.name]

    def maker(self, value: str) -> onnx.NodeProto:
        """Return the node that computes a value."""
        return next(node for node in self.graph.node if value in node.output)

    def bypass(self, node: onnx.NodeProto) -> None:
        """Remove a node: the nodes that read its output read its first input instead."""
        for reader in self.graph.node:
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = node.input[0]

    def only(self, kind: str, layer: int, part: str) -> onnx.NodeProto:
        """Return the node of an operator in a part of a layer."""
        (found,) = [node for node in self.nodes(kind, layer) if f"/{part}" in node.name]
        return found

    def attention(self, layer: int) -> onnx.NodeProto:
        """Return the attention of a layer."""
        return self.only("GroupQueryAttention", layer, "self_attn")

    def edit(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change an initializer, given the beginning of its name."""
        (found,) = [tensor for tensor in self.graph.initializer if tensor.name.startswith(name)]
        numbers = np.ascontiguousarray(change(numpy_helper.to_array(found)), np.float32)
        found.CopyFrom(numpy_helper.from_array(numbers, found.name))

    def set(self, name: str, number: float) -> None:
        """Set all numbers of an initializer, given the beginning of its name."""
        self.edit(name, lambda old: np.full_like(old, number))


Edit = Callable[[Graph], None]


def _attribute(node: onnx.NodeProto, name: str, value: float | str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _attention(layer: int, name: str, value: float) -> Edit:
    return lambda graph: _attribute(graph.attention(layer), name, value)


def _other_cache(graph: Graph) -> None:
    own, other = graph.attention(4), graph.attention(1)
    own.input[3], own.input[4] = other.output[1], other.output[2]


def _other_source(graph: Graph) -> None:
    """Let the layers that share the cache of layer 3 share that of layer 1."""
    third, first = graph.attention(3), graph.attention(1)
    for layer in (4, 5):
        own = graph.attention(layer)
        own.input[3], own.input[4] = first.output[1], first.output[2]
    new, other = (graph.maker(node.input[0]).input[1] for node in (third, first))
    (choice,) = [node for node in graph.nodes("Slice") if node.input[0] == new]
    choice.input[0] = other


def _rotation(angles: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replace the rotation of full attention, given a function from positions [T, 1] to angles [T, pairs]."""

    def edit(graph: Graph) -> None:
        pairs = np.zeros((CONTEXT, BASE["global_head_dim"] // 2))
        some = angles(np.arange(CONTEXT)[:, None])
        pairs[:, : some.shape[1]] = some
        graph.edit("rotary_cos.full", lambda _: np.cos(pairs))
        graph.edit("rotary_sin.full", lambda _: np.sin(pairs))

    return edit


def _frequencies(count: int, size: int, theta: float = 1e6) -> np.ndarray:
    return np.asarray(theta ** (-2 * np.arange(count) / size))


def _theta(graph: Graph) -> None:
    for table, numbers in zip(("cos", "sin"), rotary_tables(np.arange(CONTEXT), 32, 1e6), strict=True):
        graph.edit(f"rotary_{table}.sliding", lambda _, numbers=numbers: numbers)


def _no_norm(layer: int, part: str) -> Edit:
    return lambda graph: graph.bypass(graph.only("SimplifiedLayerNormalization", layer, part))


def _no_norm_of_projections(graph: Graph) -> None:
    (norm,) = [node for node in graph.graph.node if "per_layer_projection_norm/Simplified" in node.name]
    graph.bypass(norm)


def _exact_gelu(layer: int, part: str) -> Edit:
    return lambda graph: _attribute(graph.only("Gelu", layer, part), "approximate", "none")


def _other_projection(graph: Graph) -> None:
    """Let layer 1 take the part of the projection that belongs to layer 2."""
    own, other = (
        next(node for node in graph.graph.node if node.op_type == "Slice" and node.output[0] in adding.input)
        for adding in (graph.maker(graph.maker(f"layers.{layer}.gated_per_layer_input").input[1]) for layer in (1, 2))
        for adding in [graph.maker(adding.input[0])]
    )
    own.input[1], own.input[2] = other.input[1], other.input[2]


def _other_records(graph: Graph) -> None:
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in ("expert_value.1", "expert_value.2"):
                node.input[place] = "expert_value.2" if name == "expert_value.1" else "expert_value.1"


def _normed_gate(graph: Graph) -> None:
    gate, up = graph.only("MatMul", 1, "per_layer_input_gate"), graph.only("MatMul", 1, "mlp/up_proj")
    gate.input[0] = up.input[0]


def _narrow(graph: Graph) -> None:
    """Use only the first half of a feed-forward network of double width."""
    kept = np.arange(2 * BASE["intermediate_size"]) < BASE["intermediate_size"]
    graph.edit("model.layers.4.mlp.down_proj.weight", lambda weight: weight * kept[:, None])


class Fault(NamedTuple):
    """A change of a graph, and the name of the first wrong value."""

    edit: Edit
    place: str
    changes_logits: bool = True
    opinion: str = "the fault is in the graph"  # of ONNX's evaluator


FAULTS = {
    "window + 1": Fault(_attention(0, "local_window_size", 9), "layer 0, attention"),
    "window - 1": Fault(_attention(1, "local_window_size", 7), "layer 1, attention"),
    "window + 1 of a layer that shares": Fault(_attention(5, "local_window_size", 9), "layer 5, attention"),
    "no window": Fault(_attention(3, "local_window_size", -1), "layer 3, attention"),
    "a window of full attention": Fault(_attention(2, "local_window_size", 8), "layer 2, attention"),
    "scores scaled": Fault(_attention(1, "scale", 32**-0.5), "layer 1, attention"),
    "scores of full attention scaled": Fault(_attention(6, "scale", 64**-0.5), "layer 6, attention"),
    "keys and values of another layer": Fault(_other_source, "layer 4, attention"),
    # In ONNX Runtime, the layer copies the wrong cache over the right one, which layer 3 reads in the next step.
    "cache of another layer": Fault(
        _other_cache, "layer 3, attention", opinion="the first wrong value is another one: layer 4, attention"
    ),
    "all pairs rotated": Fault(_rotation(lambda t: t * _frequencies(32, 64)), "layer 2, attention"),
    "half of the pairs rotated": Fault(_rotation(lambda t: t * _frequencies(16, 64)), "layer 2, attention"),
    "frequencies of a shorter head": Fault(_rotation(lambda t: t * _frequencies(8, 16)), "layer 2, attention"),
    "theta of full attention": Fault(_rotation(lambda t: t * _frequencies(8, 64, 1e4)), "layer 2, attention"),
    "theta of sliding attention": Fault(_theta, "layer 0, attention"),
    "no norm of queries": Fault(_no_norm(0, "self_attn/q_norm"), "layer 0, attention"),
    "no norm of keys": Fault(_no_norm(1, "self_attn/k_norm"), "layer 1, attention"),
    "no norm of values": Fault(_no_norm(2, "self_attn/v_norm"), "layer 2, attention"),
    "no norm of attention": Fault(_no_norm(1, "post_attention_layernorm"), "layer 1, feed forward"),
    "no norm of the feed-forward": Fault(_no_norm(4, "post_feedforward_layernorm"), "layer 4, gated per layer input"),
    "no norm of the vector": Fault(_no_norm(1, "post_per_layer_input_norm"), "layer 2, residual"),
    "no norm of the projections": Fault(_no_norm_of_projections, "layer 0, gated per layer input"),
    "exact GELU": Fault(_exact_gelu(1, "mlp"), "layer 1, feed forward"),
    "exact GELU of the gate": Fault(_exact_gelu(5, "layers.5/Gelu"), "layer 5, gated per layer input"),
    "a norm before the gate": Fault(_normed_gate, "layer 1, gated per layer input"),
    "not of double width": Fault(_narrow, "layer 4, feed forward"),
    "vectors of another layer": Fault(_other_records, "layer 1, gated per layer input"),
    "projection of another layer": Fault(_other_projection, "layer 1, gated per layer input"),
    "no layer scalar": Fault(lambda graph: graph.set("model.layers.1.layer_scalar", 1), "layer 2, residual"),
    "no scalar of the last layer": Fault(
        lambda graph: graph.set("model.layers.6.layer_scalar", 1),
        "after the last layer, residual",
        changes_logits=False,  # the final norm removes a constant factor
    ),
    "no soft cap": Fault(lambda graph: graph.bypass(graph.nodes("Tanh")[0]), "after the last layer, logits"),
    "another soft cap": Fault(lambda graph: graph.set("constant.10.0", 10.1), "after the last layer, logits"),
    "no sqrt(d)": Fault(lambda graph: graph.set(f"constant.{64**0.5!r}", 1), "layer 0, scaled embedding"),
    "no sqrt(P)": Fault(lambda graph: graph.set(f"constant.{32**0.5!r}", 1), "layer 0, gated per layer input"),
    "no 1 / sqrt(2)": Fault(
        lambda graph: graph.set(f"constant.{2**-0.5!r}", 1),
        "layer 0, gated per layer input",
        changes_logits=False,  # the next norm removes a constant factor
    ),
    # Without this factor, only the epsilon of the next norm weighs less, so a smaller one takes its place.
    "1 / sqrt(d)": Fault(lambda graph: graph.set(f"constant.{64**-0.5!r}", 1e-3), "layer 0, gated per layer input"),
}


def _broken(sound: Path, folder: Path, edit: Edit) -> Path:
    wrong = Path(shutil.copytree(sound, folder / "bundle"))
    model = onnx.load(wrong / "model.onnx")
    edit(Graph(model))
    for file in ("model.onnx", "model.onnx.data"):
        (wrong / file).unlink()
    onnx.save(model, wrong / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    for file in ("model.onnx", "model.onnx.data"):
        replace_file(wrong, file, (wrong / file).read_bytes())
    return wrong


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name: str, folders: Folders, bundle: Folders, tmp_path: Path) -> None:
    edit, place, changes_logits, opinion = FAULTS[name]
    wrong = _broken(bundle("base"), tmp_path, edit)
    report = validate(wrong, folders("base"), scope=SCOPE, with_bisection=True)
    assert report.bisection is not None
    assert f": {place}: relative error" in report.bisection.culprit
    assert opinion in report.bisection.second_opinion
    assert report.failures[0] == f"bisection: {report.bisection.culprit}"
    assert any(comparison.failure for comparison in report.comparisons) == changes_logits
    assert bool(selftest(wrong).failures) == changes_logits


# The layers that share a cache compute only the positions whose logits are wanted. The comparison layer by layer wants
# all of them, so the place of a wrong choice is not named.


def _first_positions(value: Callable[[Graph], str]) -> Edit:
    """Choose the first positions of a value in place of the last ones, given the name of the value."""

    def edit(graph: Graph) -> None:
        name = value(graph)
        (cut,) = [node for node in graph.nodes("Slice") if node.input[0] == name]
        count = graph.nodes("Max")[0].output[0]
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "first"))
        cut.input[1], cut.input[2] = "first", count

    return edit


CUTS: dict[str, Callable[[Graph], str]] = {
    "residual stream": lambda graph: graph.maker(graph.maker("layers.4.residual").input[0]).input[0],
    "keys and values": lambda graph: graph.maker(graph.attention(3).input[0]).input[1],
    "vectors": lambda _: "expert_value.4",
}


@pytest.mark.parametrize("name", CUTS)
def test_a_wrong_choice_of_positions_is_found(name: str, folders: Folders, bundle: Folders, tmp_path: Path) -> None:
    wrong = _broken(bundle("base"), tmp_path, _first_positions(CUTS[name]))
    report = validate(wrong, folders("base"), scope=SCOPE, with_bisection=True)
    assert report.bisection is not None
    assert report.bisection.culprit == ""
    assert [comparison.phase for comparison in report.comparisons if comparison.failure] == ["context end"]


class _OtherCaches:
    """A dense graph whose layers 4 and 5 write to the cache of layer 1, not to that of layer 3."""

    def __init__(self, graph: calls.Graph) -> None:
        self._graph = graph

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> calls.Call:
        again = {
            f"present.{layer}.{kind}": outputs[f"present.{source}.{kind}"]
            for layer, source in {4: 1, 5: 1}.items()
            for kind in ("key", "value")
        }
        return self._graph.bind(length, inputs, {**outputs, **again})


def test_a_host_that_binds_another_cache_is_found(
    folders: Folders, bundle: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = calls.DynamicCalls.__init__

    def broken(self: calls.DynamicCalls, config: ModelConfig, graph: calls.Graph, *rest: Any) -> None:
        make(self, config, _OtherCaches(graph), *rest)

    monkeypatch.setattr(calls.DynamicCalls, "__init__", broken)
    report = validate(bundle("base"), folders("base"), scope=SCOPE, with_bisection=True)
    assert report.bisection is not None
    assert "step-by-step decode: layer 1, attention" in report.bisection.culprit
    assert selftest(bundle("base")).failures


def test_a_sound_bundle_stays_well_within_the_limit(folders: Folders, bundle: Folders) -> None:
    report = validate(bundle("base"), folders("base"), scope=SCOPE, with_bisection=True)
    assert report.failures == []
    assert report.bisection is not None
    for phase in report.bisection.phases:
        assert len(phase.errors) == 3 + 7 * 8 - 1 + 3
        assert 0 < max(error.error for error in phase.errors) < phase.limit / 2
