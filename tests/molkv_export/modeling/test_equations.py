"""The reference model agrees with the papers' equations, written again as plain numpy loops in float64."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
import torch

from molkv_bundle import LookupExpertConfig
from tests.models import CONFIGS, random_model

Array = np.ndarray
State = dict[str, Array]


def norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def turn(x: Array, position: int, theta: float) -> Array:
    """Rotate the pairs (x[i], x[i + half]), with complex numbers."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def network(x: Array, state: State, prefix: str) -> Array:
    up = state[f"{prefix}up_proj.weight"] @ x
    if f"{prefix}gate_proj.weight" in state:
        gate = state[f"{prefix}gate_proj.weight"] @ x
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        inner = np.array([v * 0.5 * (1 + erf(v / 2**0.5)) for v in up])
    return state[f"{prefix}down_proj.weight"] @ inner


def attention(xs: Array, t: int, state: State, prefix: str, c: LookupExpertConfig) -> Array:
    outs, group = [], c.num_attention_heads // c.num_key_value_heads
    for head in range(c.num_attention_heads):
        q_rows = slice(head * c.head_dim, (head + 1) * c.head_dim)
        kv_rows = slice(head // group * c.head_dim, (head // group + 1) * c.head_dim)
        q = turn(state[f"{prefix}q_proj.weight"][q_rows] @ xs[t], t, c.rope_theta)
        ks = [turn(state[f"{prefix}k_proj.weight"][kv_rows] @ xs[j], j, c.rope_theta) for j in range(t + 1)]
        vs = [state[f"{prefix}v_proj.weight"][kv_rows] @ xs[j] for j in range(t + 1)]
        outs.append(softmax(np.array([q @ k / c.head_dim**0.5 for k in ks])) @ np.array(vs))
    return state[f"{prefix}o_proj.weight"] @ np.concatenate(outs)


def experts(ids: Array, n: Array, t: int, state: State, prefix: str, c: LookupExpertConfig) -> Array:
    def values(j: int) -> list[Array]:
        e = norm(state["model.embed_tokens.weight"][ids[j]], state[f"{prefix}experts.norm.weight"], c.rms_norm_eps)
        return [network(e, state, f"{prefix}experts.networks.{i}.") for i in range(c.num_experts)]

    if c.model_type == "mole":
        return softmax(state[f"{prefix}expert_mixer.router.weight"] @ n) @ np.array(values(t))

    def keys(j: int) -> list[Array]:
        e = norm(state["model.embed_tokens.weight"][ids[j]], state[f"{prefix}experts.norm.weight"], c.rms_norm_eps)
        found = (state[f"{prefix}experts.key_proj.weight"] @ e).reshape(c.num_experts, -1)
        if c.expert_qk_norm:
            found = norm(found, state[f"{prefix}experts.key_norm.weight"], c.rms_norm_eps)
        return [turn(k, j, c.rope_theta) if c.expert_rope else k for k in found]

    q = state[f"{prefix}expert_mixer.query_proj.weight"] @ n
    if c.expert_qk_norm:
        q = norm(q, state[f"{prefix}expert_mixer.query_norm.weight"], c.rms_norm_eps)
    if c.expert_rope:
        q = turn(q, t, c.rope_theta)
    window = range(max(0, t - c.expert_window + 1), t + 1)
    scores = np.array([q @ k / c.expert_key_size**0.5 for j in window for k in keys(j)])
    out = softmax(scores) @ np.array([v for j in window for v in values(j)])
    if c.expert_gate == "sigmoid":
        out = out / (1 + np.exp(-state[f"{prefix}expert_mixer.gate.weight"][0] @ n))
    return out


def logits(ids: Array, state: State, c: LookupExpertConfig) -> Array:
    xs = state["model.embed_tokens.weight"][ids]
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        normed = norm(xs, state[f"{prefix}input_layernorm.weight"], c.rms_norm_eps)
        out = []
        for t in range(len(ids)):
            h = xs[t] + attention(normed, t, state, f"{prefix}self_attn.", c)
            n = norm(h, state[f"{prefix}post_attention_layernorm.weight"], c.rms_norm_eps)
            y = h + network(n, state, f"{prefix}mlp.")
            if layer in c.layers_with_experts:
                y = y + experts(ids, n, t, state, prefix, c)
            out.append(y)
        xs = np.array(out)
    return norm(xs, state["model.norm.weight"], c.rms_norm_eps) @ state["lm_head.weight"].T


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_model_computes_the_equations(name: str) -> None:
    model = random_model(CONFIGS[name])
    ids = np.random.default_rng(3).integers(0, 97, 9)
    state = {key: tensor.double().numpy() for key, tensor in model.state_dict().items()}
    expected = logits(ids, state, model.config)
    found = model(torch.from_numpy(ids)[None])[0].numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
