"""A wrong graph of Gemma 4 is found, and the comparison layer by layer names the place of the fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from molkv_bundle import Bundle, rotary_tables
from molkv_export.families import open_checkpoint
from molkv_export.parity.bisect import phase_errors
from molkv_export.source.model import SourceModel
from molkv_runtime import Target, selftest
from tests.manifests import replace_file

Folders = Callable[[str], Path]
IDS = np.random.default_rng(2).integers(0, 97, 30)


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
        """Give the readers of a node its first input."""
        for reader in self.graph.node:
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = node.input[0]

    def set(self, name: str, numbers: np.ndarray) -> None:
        """Replace an initializer, given the beginning of its name."""
        found = [tensor for tensor in self.graph.initializer if tensor.name.startswith(name)]
        assert len(found) == 1
        found[0].CopyFrom(numpy_helper.from_array(numbers.astype(np.float32), found[0].name))


def _window(change: int) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        for node in graph.nodes("GroupQueryAttention"):
            for attribute in node.attribute:
                if attribute.name == "local_window_size":
                    attribute.i += change

    return edit


def _scale(graph: Graph) -> None:
    for node in graph.nodes("GroupQueryAttention"):
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = 32**-0.5


def _other_source(graph: Graph) -> None:
    own, other = (graph.nodes("GroupQueryAttention", layer)[0] for layer in (4, 1))
    own.input[3], own.input[4] = "present.1.key", "present.1.value"
    graph.maker(own.input[0]).input[1] = graph.maker(other.input[0]).input[1]  # the new keys and values


def _other_rotation(graph: Graph) -> None:
    cos, sin = rotary_tables(np.arange(64), 64, 1_000_000.0)
    graph.set("rotary_cos.full", cos)
    graph.set("rotary_sin.full", sin)


def _no_norm(name: str) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        (norm,) = [node for node in graph.nodes("SimplifiedLayerNormalization", 0) if f"/{name}/" in node.name]
        graph.bypass(norm)

    return edit


def _exact_gelu(graph: Graph) -> None:
    for node in graph.nodes("Gelu"):
        node.attribute[0].s = b"none"


def _other_vector(graph: Graph) -> None:
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in ("expert_value.1", "expert_value.2"):
                node.input[place] = "expert_value.2" if name == "expert_value.1" else "expert_value.1"


def _normed_gate(graph: Graph) -> None:
    (gate,) = [node for node in graph.nodes("MatMul", 1) if "per_layer_input_gate" in node.name]
    (up,) = [node for node in graph.nodes("MatMul", 1) if "up_proj" in node.name]
    gate.input[0] = up.input[0]


class Fault(NamedTuple):
    """A change of a graph, and the name of the first wrong value."""

    edit: Callable[[Graph], None]
    place: str
    changes_logits: bool = True


FAULTS = {
    "window + 1": Fault(_window(1), "layer 0, attention"),
    "window - 1": Fault(_window(-1), "layer 0, attention"),
    "scores scaled": Fault(_scale, "layer 0, attention"),
    "keys and values of another layer": Fault(_other_source, "layer 4, attention"),
    "all pairs rotated": Fault(_other_rotation, "layer 2, attention"),
    "no norm of queries": Fault(_no_norm("q_norm"), "layer 0, attention"),
    "no norm of keys": Fault(_no_norm("k_norm"), "layer 0, attention"),
    "no norm of values": Fault(_no_norm("v_norm"), "layer 0, attention"),
    "no soft cap": Fault(lambda graph: graph.bypass(graph.nodes("Tanh")[0]), "after the last layer, logits"),
    "no layer scalar": Fault(lambda graph: graph.set("model.layers.1.layer_scalar", np.ones(1)), "layer 2, residual"),
    "no 1 / sqrt(2)": Fault(
        lambda graph: graph.set(f"constant.{2**-0.5!r}", np.array(1)),
        "layer 0, gated per layer input",
        changes_logits=False,  # the next norm removes a constant factor
    ),
    "no sqrt(d)": Fault(lambda graph: graph.set(f"constant.{64**0.5!r}", np.array(1)), "layer 0, scaled embedding"),
    "no 1 / sqrt(d)": Fault(
        lambda graph: graph.set(f"constant.{64**-0.5!r}", np.array(1e-3)), "layer 0, gated per layer input"
    ),
    "no sqrt(P)": Fault(
        lambda graph: graph.set(f"constant.{32**0.5!r}", np.array(1)), "layer 0, gated per layer input"
    ),
    "exact GELU": Fault(_exact_gelu, "layer 0, feed forward"),
    "vectors of another layer": Fault(_other_vector, "layer 1, gated per layer input"),
    "a norm before the gate": Fault(_normed_gate, "layer 1, gated per layer input"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_place_of_a_fault_is_named(name: str, folders: Folders, bundle: Folders, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(bundle("base"), tmp_path / "bundle"))
    model = onnx.load(wrong / "model.onnx")
    FAULTS[name].edit(Graph(model))
    for file in ("model.onnx", "model.onnx.data"):
        (wrong / file).unlink()
    onnx.save(model, wrong / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    for file in ("model.onnx", "model.onnx.data"):
        replace_file(wrong, file, (wrong / file).read_bytes())
    with open_checkpoint(folders("base")) as source:
        opened = Bundle(wrong)
        first = phase_errors(opened, Target(), SourceModel(source, opened), IDS, "one-shot prefill").first
    assert first is not None
    assert first.name == FAULTS[name].place
    assert bool(selftest(wrong).failures) == FAULTS[name].changes_logits


def test_the_right_graph_has_no_fault(folders: Folders, bundle: Folders) -> None:
    with open_checkpoint(folders("base")) as source:
        opened = Bundle(bundle("base"))
        errors = phase_errors(opened, Target(), SourceModel(source, opened), IDS, "one-shot prefill")
    assert errors.first is None
    assert len(errors.errors) > 7 * 8
