"""A MoLKV in plain PyTorch that shares no code with the project, like a user's own implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class OwnModel:
    """A MoLKV in training form with gated feed-forwards and no gate on the experts.

    `reading` sets choices that the paper leaves open: expert_window, qk_norm ("rms", "layer" or "none"), qk_eps and
    rotate_keys.
    """

    def __init__(self, checkpoint: Path, **reading: Any) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        assert (config["expert_gate"], config["hidden_act"]) == ("none", "silu")
        self.weights = load_file(checkpoint / "model.safetensors")
        own = {"qk_norm": "rms", "qk_eps": config["rms_norm_eps"], "rotate_keys": True}
        self.c: dict[str, Any] = {**config, **own, **reading}

    def __call__(self, ids: Tensor) -> Tensor:
        """Compute logits [B, T, V] of token ids [B, T]."""
        embeddings = self.weights["model.embed_tokens.weight"]
        x = embedded = embeddings[ids]
        for layer in range(self.c["num_hidden_layers"]):
            w = f"model.layers.{layer}."
            x = x + self.attention(self.rms(x, f"{w}input_layernorm"), f"{w}self_attn.")
            n = self.rms(x, f"{w}post_attention_layernorm")
            x = x + self.swiglu(n, f"{w}mlp.") + self.experts(n, embedded, w)
        return F.linear(self.rms(x, "model.norm"), self.weights.get("lm_head.weight", embeddings))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def rms(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.c["rms_norm_eps"])

    def swiglu(self, x: Tensor, w: str) -> Tensor:
        return self.linear(F.silu(self.linear(x, f"{w}gate_proj")) * self.linear(x, f"{w}up_proj"), f"{w}down_proj")

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate [B, T, heads, size] by positions."""
        first, second = x.chunk(2, dim=-1)
        size = first.shape[-1]
        angles = torch.outer(torch.arange(x.shape[1]), self.c["rope_theta"] ** (-torch.arange(size) / size))
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attention(self, x: Tensor, w: str) -> Tensor:
        heads, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        q, k, v = (self.linear(x, f"{w}{name}_proj").unflatten(-1, (-1, self.c["head_dim"])) for name in "qkv")
        q, k = self.rotate(q), self.rotate(k)
        k, v = (each.repeat_interleave(heads // groups, dim=2) for each in (k, v))
        out = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
        return self.linear(out.transpose(1, 2).flatten(2), f"{w}o_proj")

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        weight, size, eps = self.weights[f"{name}.weight"], x.shape[-1:], self.c["qk_eps"]
        if self.c["qk_norm"] == "none":
            return x
        return (
            F.layer_norm(x, size, weight, eps=eps) if self.c["qk_norm"] == "layer" else F.rms_norm(x, size, weight, eps)
        )

    def experts(self, n: Tensor, embedded: Tensor, w: str) -> Tensor:
        count, window = self.c["num_experts"], self.c["expert_window"]
        e = self.rms(embedded, f"{w}experts.norm")
        values = torch.stack([self.swiglu(e, f"{w}experts.networks.{i}.") for i in range(count)], dim=2)
        keys = self.linear(e, f"{w}experts.key_proj").unflatten(-1, (count, -1))
        keys = self.qk_norm(keys, f"{w}experts.key_norm")
        query = self.qk_norm(self.linear(n, f"{w}expert_mixer.query_proj"), f"{w}expert_mixer.query_norm")
        query = self.rotate(query[:, :, None])[:, :, 0]
        keys = self.rotate(keys) if self.c["rotate_keys"] else keys
        scores = torch.einsum("bqd,bjmd->bqjm", query, keys) / keys.shape[-1] ** 0.5
        back = torch.arange(n.shape[1])[:, None] - torch.arange(n.shape[1])
        seen = (back >= 0) & (back < window)
        scores = scores.masked_fill(~seen[:, :, None], float("-inf"))
        return torch.einsum("bqjm,bjmd->bqd", scores.flatten(2).softmax(-1).view_as(scores), values)
