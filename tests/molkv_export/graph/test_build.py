"""The dense graph has the expected operators, inputs and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from molkv_bundle import Bundle, DenseDtype, LookupExpertConfig
from molkv_export import GraphOptions, export
from molkv_export.families import FAMILIES
from molkv_export.graph.build import BuiltGraph
from molkv_export.graph.choices import DTYPES, LM_HEAD_DTYPES
from molkv_export.graph.initializers import source_names
from molkv_export.graph.linear import FLOAT32, DenseFormat
from molkv_runtime import session_options
from tests.models import CONFIGS, random_model


def _graph(config: LookupExpertConfig, dense: DenseFormat = FLOAT32) -> BuiltGraph:
    return FAMILIES[config.model_type].graph(config, dense)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_holds_every_weight_except_expert_tables_once(name: str) -> None:
    config = CONFIGS[name]
    weights = [n for n, v in _graph(config).model.graph.initializers.items() if v.const_value is None]
    used = Counter(source for weight in weights for source in source_names(weight, config.tie_word_embeddings))
    dense = {n for n, _ in random_model(config).named_parameters() if ".experts." not in n}
    if not config.tie_word_embeddings:
        dense.remove("model.embed_tokens.weight")  # the records hold the embeddings
    assert used == Counter(dense)


def test_the_graph_has_fused_attention_and_norms_and_no_copies_of_caches() -> None:
    config = CONFIGS["molkv"]
    graph = _graph(config).model.graph
    operators = Counter(node.op_type for node in graph)
    layers = config.num_hidden_layers
    assert operators["GroupQueryAttention"] == layers
    # Two norms in each layer and a final norm; all except the first are fused with an addition. Queries have their own.
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert operators["SimplifiedLayerNormalization"] == 1 + layers
    assert operators["Add"] == 2 * layers  # scores + mask, feed-forward + experts
    for node in graph:
        if node.op_type == "Concat":
            assert all(value.type == ir.TensorType(ir.DataType.INT64) for value in node.inputs)


def test_inputs_and_outputs_match_the_manifest(bundles: Callable[..., Path]) -> None:
    bundle = Bundle(bundles("molkv"))
    model = ir.load(bundle.path / "model.onnx")
    info = bundle.graph()
    for listed, found in ((info.files[0].inputs, model.graph.inputs), (info.files[0].outputs, model.graph.outputs)):
        assert [(t.name, list(t.shape)) for t in listed] == [
            (v.name, [d if isinstance(d, int) else d.value for d in v.shape or ()]) for v in found
        ]


def test_weights_are_stored_outside_the_protobuf(bundles: Callable[..., Path]) -> None:
    bundle = bundles("molkv")
    model = ir.load(bundle / "model.onnx")
    weights = [v for n, v in model.graph.initializers.items() if n.endswith("proj.weight")]
    assert weights
    assert {value.const_value.location for value in weights if value.const_value} == {"model.onnx.data"}


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_every_large_product_has_the_requested_format(dtype: DenseDtype) -> None:
    config = CONFIGS["molkv-gated"]
    operators = Counter(node.op_type for node in _graph(config, DenseFormat(dtype)).model.graph)
    # The products of a layer are qkv, o, gate, up, down and query. Scores, mixing and the expert gate stay in float32.
    products, plain = 6 * config.num_hidden_layers, 3 * config.num_hidden_layers
    expected = {
        "float32": {"MatMul": products + plain + 1},
        "float16": {"MatMul": products + plain + 1},
        "int8": {"MatMul": plain, "MatMulIntegerToFloat": products + 1, "QuantizeLinear": products + 1},
        "int4": {"MatMul": plain, "MatMulNBits": products, "MatMulIntegerToFloat": 1, "QuantizeLinear": 1},
    }[dtype]
    kinds = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat", "QuantizeLinear")
    assert {kind: operators[kind] for kind in kinds if operators[kind]} == expected


def test_an_int4_head_is_one_more_product_in_blocks() -> None:
    config = CONFIGS["molkv-gated"]
    formats = [DenseFormat("int4", lm_head_dtype=dtype) for dtype in LM_HEAD_DTYPES]
    graphs = [_graph(config, dense).model.graph for dense in formats]
    int8, int4 = (Counter(node.op_type for node in graph if node.op_type != "Constant") for graph in graphs)
    assert int4 - int8 == Counter({"MatMulNBits": 1})
    assert int8["MatMulIntegerToFloat"] == int8["QuantizeLinear"] == 1
    assert int4["MatMulIntegerToFloat"] == int4["QuantizeLinear"] == 0


def test_the_product_with_an_int8_window_multiplies_codes() -> None:
    config = CONFIGS["molkv-gated"]
    graphs = [_graph(config, DenseFormat(window_dtype=dtype)).model.graph for dtype in config.window_dtypes]
    floats, codes = (Counter(node.op_type for node in graph if node.op_type != "Constant") for graph in graphs)
    layers = config.num_hidden_layers
    names = ("MatMulIntegerToFloat", "QuantizeLinear", "ReduceMax", "Max", "Div")
    assert codes - floats == Counter(dict.fromkeys(names, layers) | {"Mul": 2 * layers})
    assert floats - codes == Counter({"MatMul": layers})


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_the_optimized_graph_copies_neither_cache_nor_window(
    dtype: DenseDtype, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Check the optimized graph, because ONNX Runtime's optimizer may add operators."""
    export(checkpoints("molkv"), tmp_path / "bundle", graph=GraphOptions(dtype))
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "bundle" / "model.onnx"), options)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    operators, layers = Counter(node.op_type for node in graph.node), CONFIGS["molkv"].num_hidden_layers
    assert operators["GroupQueryAttention"] == operators["Softmax"] == layers
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert operators["FusedMatMul"] == layers  # scores, fused with the transposition of keys
    assert operators["Transpose"] == operators["Cast"] == operators["Expand"] == 0
    assert (operators["Concat"], operators["Shape"]) == (2, 3)  # once for all layers
    assert operators["Reshape"] == 2 * layers
    # Products with the same input share one rounding: qkv; o; gate, up and expert queries; down; LM head.
    assert operators["QuantizeLinear"] == {"int8": 4 * layers + 1, "int4": 1}.get(dtype, 0)
    assert operators["Slice"] == (3 if dtype in ("int8", "int4") else 2)  # after the last layer
    for node in graph.node:
        if node.op_type == "Concat":
            assert not {*node.input} & {value.name for value in graph.input}
