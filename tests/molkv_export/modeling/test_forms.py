"""Training form and lookup form are the same model, and every expert in the window has an effect."""

from __future__ import annotations

import pytest
import torch

from molkv_export.families import reference_model
from molkv_export.modeling import Rows
from tests.models import CONFIGS, lookup_form, random_model

WITH_EXPERTS = [name for name, config in CONFIGS.items() if config.num_experts]


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_both_forms_agree_to_float32_rounding(name: str) -> None:
    model = random_model(CONFIGS[name])
    ids = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    trained, looked_up = model(ids), lookup_form(model)(ids)
    assert (trained - looked_up).abs().max() < 2e-5 * trained.abs().max()
    assert trained.abs().max() > 1  # else the tolerance above would be too loose


def _mixer_gradients(name: str, position: int) -> tuple[torch.Tensor, Rows, int]:
    """Differentiate the first mixer's output at a position by the rows of all positions. All tokens are distinct."""
    model = random_model(CONFIGS[name])
    mixer = model.model.layers[0].expert_mixer
    length = 12
    x = torch.randn(1, length, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    rows = model.records(torch.arange(length)).layers[0]
    rows = {name: row.clone().requires_grad_() for name, row in rows.items()}
    out = mixer(x, rows, torch.arange(length)[None])[0, position]
    (out * torch.linspace(1, 2, len(out))).sum().backward()
    return out, rows, length


@pytest.mark.parametrize("name", ["molkv", "molkv-plain", "molkv-gated"])
@pytest.mark.parametrize("position", [0, 3, 4, 5, 11])
def test_every_expert_and_key_inside_the_window_matters_and_nothing_outside_does(name: str, position: int) -> None:
    _, rows, length = _mixer_gradients(name, position)
    window = CONFIGS[name].expert_window
    key, value = rows["key"].grad, rows["value"].grad
    assert key is not None
    assert value is not None
    for j in range(length):
        visible = position - window < j <= position
        for expert in range(CONFIGS[name].num_experts):
            # A single expert has weight 1 for every key, so there are always several experts here.
            assert bool(key[j, expert].abs().sum() > 0) == visible, (j, expert)
            assert bool(value[j, expert].abs().sum() > 0) == visible, (j, expert)


def test_mole_reads_every_expert_of_the_present_token_and_no_other() -> None:
    _, rows, length = _mixer_gradients("mole", 6)
    grad = rows["value"].grad
    assert grad is not None
    for j in range(length):
        assert bool((grad[j].abs().sum(dim=-1) > 0).all()) == (j == 6)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_every_layer_with_experts_changes_the_logits(name: str) -> None:
    model = lookup_form(random_model(CONFIGS[name]))
    ids = torch.arange(20)[None]
    exact = model(ids)
    for layer in model.config.layers_with_experts:
        values = model.model.layers[layer].experts.values
        kept = values.clone()
        for expert in range(model.config.num_experts):
            values[:, expert] *= 1.5
            assert (model(ids) - exact).abs().max() > 1e-3, (layer, expert)
            values.copy_(kept)


def test_layers_without_experts_have_none() -> None:
    model = reference_model(CONFIGS["molkv-some-layers"])
    assert [layer.experts is not None for layer in model.model.layers] == [True, False, True]


def test_the_logits_of_a_token_do_not_depend_on_later_tokens() -> None:
    model = random_model(CONFIGS["molkv"])
    ids = torch.arange(30)[None]
    changed = ids.clone()
    changed[0, 20:] += 40
    assert torch.equal(model(ids)[0, :20], model(changed)[0, :20])
