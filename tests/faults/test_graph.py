"""Graphs that could crash ONNX Runtime are refused before it loads them. Graphs of the exporter are accepted."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from molkv_bundle import BundleError, Gemma4Config
from molkv_bundle.operators import OPERATORS, OPSETS, Operator
from molkv_export import GraphOptions, export
from molkv_export.graph.build import BuiltGraph
from molkv_export.graph.choices import DTYPES
from molkv_export.profiles import plan_graphs
from molkv_runtime import Generator
from tests.faults.open_mutants import PATIENCE_SECONDS
from tests.manifests import replace_file
from tests.models import CONFIGS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "bundle-format.md"
_TYPES = {
    ir.AttributeType.FLOAT: "float",
    ir.AttributeType.INT: "int",
    ir.AttributeType.STRING: "string",
    ir.AttributeType.TENSOR: "tensor",
    ir.AttributeType.INTS: "ints",
}


# --- the list of operators

# It has both types of attention, and layers that share a cache of each type.
_GEMMA4 = Gemma4Config(
    model_type="gemma4_text",
    vocab_size=97,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=48,
    head_dim=16,
    global_head_dim=32,
    layer_types=("sliding_attention", "full_attention") * 2,
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    sliding_window=8,
    hidden_size_per_layer_input=32,
    rms_norm_eps=1e-6,
    sliding_rope_theta=10_000.0,
    full_rope_theta=1_000_000.0,
    partial_rotary_factor=0.25,
    final_logit_softcapping=30.0,
    tie_word_embeddings=True,
)


def _all_graphs() -> Iterator[BuiltGraph]:
    """Build the graphs of every profile, dtype and kind of model."""
    for config in (*CONFIGS.values(), _GEMMA4):
        for profile in config.profiles:
            for dtype in DTYPES[profile]:
                for kv_dtype in ("float32", "int8") if profile == "cpu" else ("float32",):
                    lengths = None if profile == "cpu" else [4]
                    window_dtype = config.window_dtypes[-1] if profile == "cpu" else "float32"
                    options = GraphOptions(dtype, kv_dtype=kv_dtype, chunk_lengths=lengths, window_dtype=window_dtype)
                    [plan] = plan_graphs(config, [profile], options, "float16")
                    yield from plan.graphs.values()


@pytest.mark.slow
def test_the_list_of_operators_is_exactly_what_the_exporter_uses() -> None:
    kinds: defaultdict[tuple[str, str], tuple[set[str], set[str], dict[str, str]]] = defaultdict(
        lambda: (set(), set(), {})
    )
    for graph in _all_graphs():
        assert graph.model.graph.opset_imports.items() <= OPSETS.items()
        for node in graph.model.graph:
            inputs, outputs, attributes = kinds[node.domain, node.op_type]
            inputs.add("".join("-" if value is None else "x" for value in node.inputs))
            outputs.add("".join("x" if value.name else "-" for value in node.outputs))
            attributes |= {attribute.name: _TYPES[attribute.type] for attribute in node.attributes.values()}
    kinds["", "Constant"][2]["value_float"] = "float"  # in bundles of older exporters
    used = {kind: (frozenset(ins), frozenset(outs), attributes) for kind, (ins, outs, attributes) in kinds.items()}
    assert used == {kind: (op.inputs, op.outputs, dict(op.attributes)) for kind, op in OPERATORS.items()}


def test_the_document_has_the_same_list() -> None:
    section = DOCUMENT.read_text().split("## What a graph may hold")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([A-Za-z.]+)` \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    found = {}
    for name, *cells in rows:
        domain, _, operator = name.rpartition(".")
        inputs, outputs = (frozenset(re.findall("`([x-]+)`", cell)) or frozenset([""]) for cell in cells[:2])
        attributes = dict(re.findall(r"`(\w+)` (\w+)", cells[2]))
        found["com.microsoft" if domain == "ms" else domain, operator] = Operator(inputs, outputs, attributes)
    assert len(rows) == len(found)
    assert found == {kind: op._replace(attributes=dict(op.attributes)) for kind, op in OPERATORS.items()}


# --- refused graphs


@pytest.fixture
def bundle(bundles: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(bundles("molkv"), tmp_path / "bundle")


def _node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def _attribute(model: onnx.ModelProto, op_type: str, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in _node(model, op_type).attribute if attribute.name == name)


def _external(model: onnx.ModelProto, key: str) -> onnx.StringStringEntryProto:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    return next(entry for entry in tensor.external_data if entry.key == key)


def _max_of_nothing(model: onnx.ModelProto) -> None:
    """Leave an input of `Max` empty: ONNX Runtime reads every listed input and crashes."""
    node = _node(model, "Add")
    node.op_type, node.input[1] = "Max", ""


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "an empty input": (_max_of_nothing, r"\(Max\) has the inputs x-, expected xx"),
    "a shape of many dimensions": (
        lambda m: m.graph.initializer[0].dims.extend([2**31 - 1] * 1000),
        "and the shape .*, expected one of",
    ),
    "an empty last input": (lambda m: _node(m, "Add").input.append(""), "has the inputs xx-, expected xx"),
    "an input too many": (
        lambda m: _node(m, "GroupQueryAttention").input.append("inputs_embeds"),
        "has the inputs x--xxxxxxx, expected x--xxxxxx or x--xxxxxx---xx",
    ),
    "an output too few": (lambda m: _node(m, "GroupQueryAttention").output.pop(), "outputs xx, expected xxx"),
    "an unknown operator": (
        lambda m: setattr(_node(m, "MatMul"), "op_type", "Gemm"),
        "has the operator 'Gemm', which dense graphs may not",
    ),
    "an unknown domain": (
        lambda m: setattr(_node(m, "MatMul"), "domain", "com.microsoft"),
        "has the operator 'MatMul' of 'com.microsoft', which dense graphs may not",
    ),
    "a name that nothing defines": (
        lambda m: _node(m, "MatMul").input.__setitem__(0, "nothing"),
        "uses 'nothing', which is not defined before its use",
    ),
    "nodes in another order": (lambda m: m.graph.node.reverse(), "which is not defined before its use"),
    "an output of the graph that nothing computes": (
        lambda m: setattr(m.graph.output[0], "name", "nothing"),
        "uses 'nothing', which is not defined before its use",
    ),
    "an output that is there already": (lambda m: m.graph.node.append(m.graph.node[-1]), "defines 'logits' twice"),
    "an initializer that shadows an input": (
        lambda m: setattr(m.graph.initializer[0], "name", "inputs_embeds"),
        "defines 'inputs_embeds' twice",
    ),
    "an unknown attribute": (
        lambda m: _node(m, "GroupQueryAttention").attribute.append(helper.make_attribute("softcap", 1.0)),
        "has an attribute 'softcap' whose name or value is not allowed",
    ),
    "an attribute twice": (
        lambda m: _node(m, "Softmax").attribute.append(_attribute(m, "Softmax", "axis")),
        r"\(Softmax\) has two attributes of the same name",
    ),
    "an attribute of another type": (
        lambda m: setattr(_attribute(m, "Softmax", "axis"), "type", onnx.AttributeProto.FLOAT),
        "has an attribute 'axis' whose name or value",
    ),
    "a huge attribute": (
        lambda m: setattr(_attribute(m, "GroupQueryAttention", "num_heads"), "i", 2**31),
        "has an attribute 'num_heads' whose name or value",
    ),
    "a huge dimension": (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62),
        r"has the data type 1 and the shape \[4611686018427387904\], expected one of",
    ),
    "an unknown data type": (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "has the data type 8"),
    "too few bytes": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "has 4 bytes, expected 256"),
    "weights behind the end of the file": (
        lambda m: setattr(_external(m, "offset"), "value", str(10**9)),
        r"'offset', '1000000000'.* expected 32768 bytes inside model.onnx.data, which has \d+ bytes",
    ),
    "data without a location": (
        lambda m: setattr(_external(m, "location"), "key", "checksum"),
        "'checksum', 'model.onnx",
    ),
    "an offset that is no number": (lambda m: setattr(_external(m, "offset"), "value", "-1"), "'offset', '-1'"),
    "a sparse tensor": (lambda m: m.graph.sparse_initializer.add(), "contains a sparse tensor"),
    "a field that we do not use": (lambda m: setattr(m, "doc_string", "x"), "contains field 6 of Model"),
    "another version of the operators": (
        lambda m: setattr(m.opset_import[0], "version", 7),
        r"its operator sets are \[\('', 7\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_parts_that_no_dense_graph_has_are_refused(what: str, bundle: Path) -> None:
    edit, message = REFUSED[what]
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    edit(model)
    replace_file(bundle, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=rf"model\.onnx: .*{message}") as caught:
        Generator(bundle)
    assert "\n" not in str(caught.value)


# --- random changes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "profile", "options"),
    [
        ("molkv-gated", "cpu", GraphOptions(dense_dtype="int8", kv_dtype="int8")),
        ("mole", "cpu", GraphOptions(dense_dtype="int4")),
        ("mole", "coreml", GraphOptions(dense_dtype="float16", chunk_lengths=[4])),
        ("molkv-gated", "nnapi", GraphOptions(dense_dtype="qdq-int8", chunk_lengths=[4])),
    ],
)
def test_changed_graphs_neither_crash_nor_hang(
    name: str, profile: str, options: GraphOptions, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Open 100 mutants with matching hashes in a separate process. Each is refused in one line, or runs.

    Without the check, seed 378 crashes the first bundle and seed 304 the third.
    """
    export(checkpoints(name), tmp_path / "bundle", profiles=[profile], graph=options, experts_dtype="float32")
    count = 100
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.open_mutants", tmp_path / "bundle", "300", str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=count * PATIENCE_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1]} ends in {done.returncode}: {done.stderr[-500:]}"
    assert lines[0].startswith("sound: ran")
    results = [line.strip() for line in lines[2::2]]
    assert len(results) == count
    assert all(re.match(r"ran \[|BundleError: |ProviderError: ", result) for result in results)
    assert sum(result.startswith("ran") for result in results) > count / 20  # not everything is refused
