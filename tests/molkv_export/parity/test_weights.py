"""Dense weights of correct bundles equal the source; one wrong element is found and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits
from safetensors.torch import load_file, save_file

from molkv_bundle import Bundle
from molkv_export import GraphOptions, export
from molkv_export.families import open_checkpoint
from molkv_export.graph.choices import BLOCK_SIZES, DTYPES, LM_HEAD_DTYPES, LmHeadDtype
from molkv_export.graph.linear import BlockwiseLinear, HalfLinear, RowwiseInt8Linear
from molkv_export.parity.weights import WeightsResult, weights_agreement
from molkv_export.source.model import SourceModel
from tests.manifests import replace_file
from tests.models import STDLIB_MINI

FORMATS = [(profile, dtype) for profile, dtypes in DTYPES.items() for dtype in dtypes]


def _agreement(path: Path, checkpoint: Path, profile: str = "cpu") -> WeightsResult:
    bundle = Bundle(path, profile=profile)
    with open_checkpoint(checkpoint) as source:
        return weights_agreement(bundle, SourceModel(source, bundle))


def _dense_shapes(checkpoint: Path) -> list[tuple[int, ...]]:
    """Return the shapes of the parameters in the dense graph: all except records, including a tied LM head."""
    with open_checkpoint(checkpoint) as source:
        model = source.make_model(source.config, source.form)
        parameters = model.state_dict().items()
    return [tuple(p.shape) for name, p in parameters if ".experts." not in name and "embed_tokens" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("name", ["molkv", "molkv-plain"])  # the second one has tied embeddings
def test_every_element_of_an_int4_head_equals_the_source(
    name: str, size: int, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints(name)
    export(checkpoint, tmp_path / "b", graph=GraphOptions("int4", size, lm_head_dtype="int4"))
    shapes = _dense_shapes(checkpoint)
    expected = WeightsResult(len(shapes), sum(math.prod(shape) for shape in shapes), "")
    assert _agreement(tmp_path / "b", checkpoint) == expected


@pytest.mark.parametrize("head", LM_HEAD_DTYPES)
def test_blocks_whose_scales_are_by_the_largest_magnitude_equal_the_source(
    head: LmHeadDtype, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write the codes and scales of ONNX Runtime's quantizer, as older bundles have them."""
    with monkeypatch.context() as patch:
        patch.setattr(BlockwiseLinear, "encode", _by_onnxruntime)
        export(checkpoints("molkv"), tmp_path / "b", graph=GraphOptions("int4", 16, lm_head_dtype=head))
    assert _agreement(tmp_path / "b", checkpoints("molkv")).failure == ""


def _by_onnxruntime(linear: BlockwiseLinear, weight: np.ndarray) -> dict[str, np.ndarray]:
    (rows, columns), size = weight.shape, linear.block_size
    blocks = -(-rows // size)
    codes, scales = np.zeros((columns, blocks, size // 2), np.uint8), np.zeros((columns, blocks), np.float32)
    unused, padded = np.zeros((columns, -(-blocks // 2)), np.uint8), np.pad(weight, ((0, -rows % size), (0, 0)))
    quantize_matmul_4bits(codes, padded, scales, unused, size, columns, rows, True)
    return {"weight": codes, "weight_scale": scales}


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "dtype"), FORMATS)
@pytest.mark.parametrize("name", ["molkv", "molkv-plain", "molkv-gated", "mole"])
def test_every_element_of_every_format_equals_the_source(
    name: str, profile: str, dtype: Any, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints(name)
    export(checkpoint, tmp_path / "b", profiles=[profile], graph=GraphOptions(dtype))
    shapes = _dense_shapes(checkpoint)
    expected = WeightsResult(len(shapes), sum(math.prod(shape) for shape in shapes), "")
    assert _agreement(tmp_path / "b", checkpoint, profile) == expected


def _rounded_to_bfloat16(w: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(w.numpy().astype(ml_dtypes.bfloat16).astype(np.float32))


def _around_the_smallest(w: torch.Tensor) -> torch.Tensor:
    return w * torch.logspace(-45, 0, w.shape[0])[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("change", [_rounded_to_bfloat16, _around_the_smallest])
@pytest.mark.parametrize(
    "graph", [GraphOptions("int8"), *(GraphOptions("int4", size) for size in BLOCK_SIZES)], ids=str
)
def test_ties_and_tiny_scales_are_not_faults(graph: GraphOptions, change: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_bytes((STDLIB_MINI / "config.json").read_bytes())
    tensors = {name: tensor.float() for name, tensor in load_file(STDLIB_MINI / "model.safetensors").items()}
    tensors = {name: change(t).contiguous() if "_proj" in name and t.dim() == 2 else t for name, t in tensors.items()}
    save_file(tensors, checkpoint / "model.safetensors")
    export(checkpoint, tmp_path / "bundle", graph=graph)
    assert _agreement(tmp_path / "bundle", checkpoint).failure == ""


# --- faults


def _edit(bundle: Path, file: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer of a graph; the changed tensor is stored in the graph's own file."""
    model = onnx.load(bundle / file, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor, str(bundle)).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array)), name))
    replace_file(bundle, file, model.SerializeToString())


def _last_bit(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], np.float32(9), dtype=array.dtype)
    return array


def _next_code(array: np.ndarray) -> np.ndarray:
    array[3, 5] += 1 if array[3, 5] < 100 else -1
    return array


def _next_nibble(array: np.ndarray) -> np.ndarray:
    array[3, 0, 5] += 16 if array[3, 0, 5] >> 4 < 15 else -16
    return array


LAYER = "model.layers.2."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "initializer", "change", "failure"),
    [
        ("float32", "mlp.down_proj.weight", _last_bit, "mlp.down_proj.weight [127, 383] is "),
        ("float16", "self_attn.qkv_proj.weight", _last_bit, "self_attn.v_proj.weight [63, 127] is "),
        ("float16", "post_attention_layernorm.weight", _last_bit, "post_attention_layernorm.weight [127] is "),
        ("int8", "self_attn.o_proj.weight", _next_code, "self_attn.o_proj.weight [5, 3] is "),
        ("int8", "mlp.up_proj.weight_scale", _last_bit, "mlp.up_proj.weight [383, "),
        ("int8", "expert_mixer.query_norm.weight", _last_bit, "expert_mixer.query_norm.weight [31] is "),
        ("int4", "mlp.gate_proj.weight", _next_nibble, "mlp.gate_proj.weight [3, 11] is "),
        ("int4", "expert_mixer.query_proj.weight_scale", _last_bit, "expert_mixer.query_proj.weight [31, "),
        ("int4", "self_attn.qkv_proj.weight", lambda w: w[:, :, ::-1], "self_attn.q_proj.weight [0, "),
    ],
)
def test_one_wrong_element_is_found_and_named(
    dtype: Any, initializer: str, change: Any, failure: str, copied: Callable[..., Path]
) -> None:
    bundle = copied("stdlib-mini", "float16", graph=GraphOptions(dtype, 32))
    _edit(bundle, "model.onnx", LAYER + initializer, change)
    assert _agreement(bundle, STDLIB_MINI).failure.startswith(LAYER + failure)


def test_the_failure_states_found_and_expected_values(copied: Callable[..., Path]) -> None:
    bundle = copied("stdlib-mini", "float16")
    name = "model.layers.1.input_layernorm.weight"
    with open_checkpoint(STDLIB_MINI) as source:
        right = float(source.tensor(name)[7])

    def change(weight: np.ndarray) -> np.ndarray:
        weight[7] = 0.5
        return weight

    _edit(bundle, "model.onnx", name, change)
    failure = f"{name} [7] is 0.5, expected {right:.9g} (1 of 128 numbers differ)"
    assert _agreement(bundle, STDLIB_MINI).failure == failure


def test_nan_is_found(copied: Callable[..., Path]) -> None:
    bundle = copied("stdlib-mini", "float16")
    _edit(bundle, "model.onnx", "model.norm.weight", lambda weight: weight * np.float32(np.nan))
    assert _agreement(bundle, STDLIB_MINI).failure.startswith("model.norm.weight [0] is nan")


def test_a_separate_copy_in_another_static_graph_is_compared(copied: Callable[..., Path]) -> None:
    graph = GraphOptions("qdq-int8", chunk_lengths=(1, 8))
    bundle = copied("stdlib-mini", "float16", profiles=["nnapi"], graph=graph)
    assert _agreement(bundle, STDLIB_MINI, "nnapi").failure == ""
    _edit(bundle, "model.nnapi.8.onnx", "model.layers.0.mlp.up_proj.weight_scale", lambda scale: scale * 2)
    assert _agreement(bundle, STDLIB_MINI, "nnapi").failure.startswith("model.layers.0.mlp.up_proj.weight [0, 0]")


def test_a_weight_that_no_graph_holds_is_found(copied: Callable[..., Path]) -> None:
    bundle = copied("stdlib-mini", "float16")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    name, other = "model.norm.weight", "model.other.weight"
    next(tensor for tensor in model.graph.initializer if tensor.name == name).name = other
    for node in model.graph.node:
        node.input[:] = [other if value == name else value for value in node.input]
    replace_file(bundle, "model.onnx", model.SerializeToString())
    assert _agreement(bundle, STDLIB_MINI).failure == "model.norm.weight is in no graph"


def _wrong_half(weight: np.ndarray) -> np.ndarray:
    """Truncate instead of rounding to the nearest."""
    return (weight.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "linear", "change"),
    [
        ("float16", HalfLinear, _wrong_half),
        ("int8", RowwiseInt8Linear, lambda weight: weight * np.float32(128 / 127)),
        ("int4", BlockwiseLinear, lambda weight: np.roll(weight, 1, axis=0)),
    ],
)
def test_a_wrong_encoder_is_found(
    dtype: Any, linear: Any, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = linear.encode
    monkeypatch.setattr(linear, "encode", lambda self, weight: encode(self, change(weight)))
    export(STDLIB_MINI, tmp_path / "bundle", graph=GraphOptions(dtype))
    assert _agreement(tmp_path / "bundle", STDLIB_MINI).failure
