"""PyTorch without a compiler: the MoLKV model with a KV cache, an expert window and all tables in RAM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed import CONTEXT
from molkv_export.families import open_checkpoint
from molkv_export.modeling.decoder import DecoderLayer
from molkv_export.modeling.layers import Attention, rotate
from molkv_export.modeling.molkv import MolkvForCausalLM, MolkvMixer
from molkv_export.source.model import SourceModel


class Eager:
    """A model in eager PyTorch, with the weights of a checkpoint and tables of random float16 numbers.

    Random tables are enough, because only the time of a look-up matters.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._checkpoint = open_checkpoint(folder)
        model = SourceModel(self._checkpoint).model
        assert isinstance(model, MolkvForCausalLM)
        self._model = model
        c = self._config = model.config
        self.vocab_size = c.vocab_size
        self._embedding = torch.randn(c.vocab_size, c.hidden_size).half()
        self._table = torch.empty(
            c.vocab_size, c.num_hidden_layers, c.num_experts, c.expert_key_size + c.hidden_size, dtype=torch.float16
        )
        for rows in torch.split(self._table, 2048):
            rows.copy_(torch.randn(rows.shape))
        self._cache = torch.zeros(c.num_hidden_layers, 2, CONTEXT, c.num_attention_heads, c.head_dim)
        self._window = torch.zeros(c.num_hidden_layers, CONTEXT + c.expert_window, c.num_experts, self._table.shape[-1])
        self._length = 0

    def start(self, batch: int) -> None:
        """Start with an empty sequence."""
        if batch != 1:
            raise ValueError(f"batch is {batch}, expected 1")
        self._length = 0

    def prefill(self, ids: np.ndarray) -> None:
        """Prefill a prompt in chunks of 256 tokens."""
        for part in np.split(ids, range(256, len(ids), 256)):
            self._run(torch.from_numpy(part))

    def decode(self, token: int) -> None:
        """Decode a token."""
        self._run(torch.tensor([token]))

    @torch.no_grad()
    def _run(self, ids: Tensor) -> Tensor:
        start, end = self._length, self._length + len(ids)
        positions = torch.arange(start, end)
        rows = self._table[ids].float()  # [T, L, N, dk + d]
        x = self._embedding[ids].float()
        visible = torch.arange(end) <= positions[:, None]
        for index, layer in enumerate(self._model.model.layers):
            assert isinstance(layer, DecoderLayer)
            assert isinstance(layer.expert_mixer, MolkvMixer)
            x = x + self._attend(layer.self_attn, layer.input_layernorm(x), index, positions, visible)
            n = layer.post_attention_layernorm(x)
            x = x + layer.mlp(n) + self._mix(layer.expert_mixer, n, index, rows[:, index], positions)
        self._length = end
        logits: Tensor = self._model.lm_head(self._model.model.norm(x[-1:]))
        return logits

    def _attend(self, attention: Attention, x: Tensor, index: int, positions: Tensor, visible: Tensor) -> Tensor:
        c, end = self._config, int(positions[-1]) + 1
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (part(x).view(len(x), -1, c.head_dim) for part in parts)
        self._cache[index, 0, positions] = rotate(key, positions[:, None], c.rope_theta)
        self._cache[index, 1, positions] = value
        query = rotate(query, positions[:, None], c.rope_theta).transpose(0, 1)
        keys, values = (cache.transpose(0, 1) for cache in self._cache[index, :, :end])
        out: Tensor = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
        projected: Tensor = attention.o_proj(out.transpose(0, 1).flatten(1))
        return projected

    def _mix(self, mixer: MolkvMixer, n: Tensor, index: int, rows: Tensor, positions: Tensor) -> Tensor:
        c, window = self._config, self._config.expert_window
        first, end = max(0, int(positions[0]) - window + 1), int(positions[-1]) + 1
        dk = c.expert_key_size
        self._window[index, positions, :, :dk] = rotate(rows[..., :dk], positions[:, None], c.rope_theta)
        self._window[index, positions, :, dk:] = rows[..., dk:]
        seen = torch.arange(first, end)
        mask = (seen <= positions[:, None]) & (seen > positions[:, None] - window)
        assert mixer.query_norm is not None
        query = rotate(mixer.query_norm(mixer.query_proj(n)), positions, c.rope_theta)
        experts = self._window[index, first:end].flatten(0, 1)
        return F.scaled_dot_product_attention(
            query, experts[:, :dk], experts[:, dk:], attn_mask=mask.repeat_interleave(c.num_experts, dim=1)
        )
