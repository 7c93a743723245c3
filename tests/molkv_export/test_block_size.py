"""An int4 export takes the block size of a checkpoint whose weights are already rounded to 4 bits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from molkv_export import GraphOptions, export
from molkv_export.modeling import ReferenceModel
from tests.models import CONFIGS, random_model, save_checkpoint

CONFIG = msgspec.structs.replace(CONFIGS["mole"], intermediate_size=64)


def _rounded(model: ReferenceModel) -> ReferenceModel:
    """Round the weights of products to 4 bits in blocks of 32, as quantization-aware training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight") and ".experts." not in name:
                blocks = parameter.view(-1, 32)
                step = (blocks.abs().amax(1, keepdim=True) / 7).bfloat16().float()
                parameter.copy_(((blocks / step).round() * step).bfloat16().view_as(parameter))
    return model


@pytest.mark.parametrize(("given", "is_rounded", "expected"), [(None, True, 32), (None, False, 128), (64, True, 64)])
def test_the_block_size_follows_from_the_weights_unless_it_is_given(
    tmp_path: Path, given: int | None, is_rounded: bool, expected: int
) -> None:
    model = random_model(CONFIG)
    save_checkpoint(_rounded(model) if is_rounded else model, tmp_path / "checkpoint")
    manifest = export(tmp_path / "checkpoint", tmp_path / "bundle", graph=GraphOptions("int4", given))
    assert manifest.graphs["cpu"].block_size == expected
