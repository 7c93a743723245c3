"""The check of stored numbers accepts the values that the exporter writes, and refuses values a step away."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from molkv_bundle import ROW_FORMATS, GraphInfo, MolkvConfig, Records, RowDtype, record_dtype
from molkv_export.checkpoints import LM_HEAD
from molkv_export.modeling.layers import FeedForward
from molkv_export.source.rounding import StoredRows, rounding_slack, stored_weight
from molkv_export.tables.quantize import quantize

COUNT = 8
CONFIG = MolkvConfig(
    model_type="molkv",
    vocab_size=COUNT,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=16,
    num_experts=2,
    expert_key_size=16,
    expert_window=4,
)
QUANTIZED = [dtype for dtype in get_args(RowDtype) if ROW_FORMATS[dtype].scale]


def _stored(dtype: RowDtype) -> tuple[Records, torch.Tensor]:
    exact = torch.randn(COUNT, CONFIG.num_experts, CONFIG.hidden_size, generator=torch.Generator().manual_seed(3))
    records = np.zeros(COUNT, record_dtype(CONFIG, dtype))
    row: Any = records["layers"][:, 0]
    if ROW_FORMATS[dtype].scale:
        value, scale = quantize(exact, dtype)
        row["value"], row["scale"] = value.numpy(), scale.numpy()
    else:
        row["value"] = exact.numpy()
    return records, exact


def _right(records: Records, dtype: RowDtype, exact: torch.Tensor) -> list[bool]:
    right: list[bool] = StoredRows(records, CONFIG, dtype, rounding_slack(64)).vector(0, "value", exact)[1].tolist()
    return right


@pytest.mark.parametrize("dtype", get_args(RowDtype))
def test_values_that_the_exporter_writes_are_accepted(dtype: RowDtype) -> None:
    records, exact = _stored(dtype)
    assert _right(records, dtype, exact) == [True] * COUNT


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_neighbouring_code_is_refused(dtype: RowDtype) -> None:
    records, exact = _stored(dtype)
    codes = records["layers"]["value"][5, 0].view(np.uint8).reshape(-1)
    codes[7] ^= 1
    assert _right(records, dtype, exact) == [token != 5 for token in range(COUNT)]


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.02, 2, -1, 0])
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_another_scale_is_refused_even_with_matching_codes(dtype: RowDtype, factor: float) -> None:
    records, exact = _stored(dtype)
    records["layers"]["scale"][2, 0, 1] *= factor
    assert _right(records, dtype, exact) == [token != 2 for token in range(COUNT)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_number_two_steps_away_is_refused(dtype: RowDtype) -> None:
    records, exact = _stored(dtype)
    value = records["layers"]["value"][6, 0]
    at = np.unravel_index(np.abs(value).argmax(), value.shape)
    bits = value.view(np.uint32 if dtype == "float32" else np.uint16)
    bits[at] += 32 if dtype == "float32" else 1
    assert _right(records, dtype, exact) == [token != 6 for token in range(COUNT)]


@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 24), (128, 256), (256, 2048)])
def test_the_slack_covers_rows_computed_in_other_batch_sizes(hidden: int, intermediate: int) -> None:
    """The exporter and the comparison compute rows in batches of different sizes."""
    slack = rounding_slack(max(hidden, intermediate))
    torch.manual_seed(0)
    network = FeedForward(hidden, intermediate, "silu").requires_grad_(False)
    x = torch.randn(1500, hidden, generator=torch.Generator().manual_seed(0))
    whole = network(x)
    pieces = torch.cat([network(piece) for piece in x.split([1, 7, 100, 392, 1000])])
    apart = ((whole - pieces).abs() / whole.abs().amax(-1, keepdim=True)).max().item()
    assert 0 < apart < slack / 2
    assert slack < 2**-11 / 50  # far below a step of float16


@pytest.mark.parametrize("rows", [1, 512, 513, 1500])
@pytest.mark.parametrize(("dtype", "name"), [("int8", "model.layers.0.mlp.up_proj.weight"), ("int4", LM_HEAD)])
def test_rows_are_rounded_alike_in_pieces_and_at_once(dtype: Any, name: str, rows: int) -> None:
    graph = GraphInfo(
        files=(),
        data="",
        golden="",
        context_length=1,
        expert_window=0,
        min_onnxruntime="1.25.1",
        dense_dtype=dtype,
        kv_dtype="float32",
        window_dtype="float32",
        block_size=32,
    )
    weight = torch.randn(rows, 33, generator=torch.Generator().manual_seed(5))
    weight[rows // 2] = 0
    exact = weight.clone()
    scale = weight.abs().amax(1, keepdim=True) / 127
    at_once = torch.where(scale == 0, 0.0, (weight / scale).round() * scale)
    found = stored_weight(name, weight, graph, ())
    np.testing.assert_array_equal(found.view(torch.int32).numpy(), at_once.view(torch.int32).numpy())
    np.testing.assert_array_equal(weight.numpy(), exact.numpy())
