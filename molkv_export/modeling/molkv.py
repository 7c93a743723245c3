"""The MoLKV model (arXiv 2512.09723): each layer attends to the key-value experts of the last W tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from molkv_bundle import MolkvConfig
from molkv_export.modeling.decoder import LookupExpertForCausalLM
from molkv_export.modeling.experts import ExpertNetworks, ExpertPart
from molkv_export.modeling.layers import RMSNorm, rotate
from molkv_export.modeling.reference import ExactRecords, Form, Rows


def window_mask(length: int, window: int, device: torch.device | None = None) -> Tensor:
    """Return a bool mask [length, length]: position t (row) sees position j (column) if t - window < j <= t."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)


class KeyValueNetworks(ExpertNetworks):
    """Expert networks that compute MoLE's values, and keys k[i,n] = RMSNorm_k(K_n RMSNorm(e_i)).

    The paper says only that experts are key-value pairs. The form of the keys is our choice.
    """

    def __init__(self, config: MolkvConfig) -> None:
        super().__init__(config)
        # The matrices K_n of all experts, stacked: [N*dk, d].
        self.key_proj = nn.Linear(config.hidden_size, config.num_experts * config.expert_key_size, bias=False)
        self.key_norm = RMSNorm(config.expert_key_size, config.rms_norm_eps) if config.expert_qk_norm else None

    def forward(self, ids: Tensor, embedding: Tensor) -> Rows:
        """Return the rows of token ids [U], computed from their embeddings [U, d]; keys are not rotated."""
        return {"key": self.key(self.norm(embedding)), **super().forward(ids, embedding)}

    def key(self, x: Tensor) -> Tensor:
        """Return the keys [U, N, dk] for normed embeddings [U, d]."""
        key: Tensor = self.key_proj(x).unflatten(-1, (self.num_experts, -1))
        return key if self.key_norm is None else self.key_norm(key)

    def parts(self) -> Iterator[ExpertPart]:
        """Yield one part with the keys of all experts, then one part with the values of each expert."""

        def rows(networks: KeyValueNetworks, embedding: Tensor) -> Tensor:
            return networks.key(networks.norm(embedding))

        yield ExpertPart("key", slice(None), ("norm.", "key_"), rows)
        yield from super().parts()


class MolkvMixer(nn.Module):
    """Attention from the query of each position to the experts in its window (MoLKV, arXiv 2512.09723).

    x_t is the normed residual stream at position t, and i_j the token id at position j:

    q_t = RoPE_t(RMSNorm_q(Wq x_t));  kk_{j,n} = RoPE_j(k[i_j,n])
    a = softmax over all (j in window(t), n) of (q_t . kk_{j,n}) / sqrt(dk)
    out_t = g_t * sum_{j,n} a_{j,n} v[i_j,n]

    The paper says that the query is computed from the input, and that it interacts with the experts that are cached for
    the sequence. Norms, rotation, the form of the window and the gate are our choice; `docs/architecture.md` has the
    reasons.
    """

    def __init__(self, config: MolkvConfig) -> None:
        super().__init__()
        self.window = config.expert_window
        self.rounds_window = False  # whether to round as a graph with an int8 window does
        self.rope_theta = config.rope_theta if config.expert_rope else None
        self.query_proj = nn.Linear(config.hidden_size, config.expert_key_size, bias=False)
        self.query_norm = RMSNorm(config.expert_key_size, config.rms_norm_eps) if config.expert_qk_norm else None
        self.gate = nn.Linear(config.hidden_size, 1, bias=False) if config.expert_gate == "sigmoid" else None

    def forward(self, x: Tensor, rows: Rows, inverse: Tensor) -> Tensor:
        """Attend from every position to the experts in its window, and return the output [B, T, d].

        Args:
            x: The normed residual stream [B, T, d].
            rows: Experts of U distinct token ids.
            inverse: For each position, the index of its token id among these ids, [B, T].
        """
        query, key, visible = self._query_and_keys(x, rows, inverse)
        value = rows["value"][inverse].flatten(1, 2)
        if self.rounds_window:
            out = _mixed_in_int8(torch.softmax(_scores(query, key, visible), dim=-1), value)
        else:
            out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return out if self.gate is None else torch.sigmoid(self.gate(x)) * out

    def scores(self, x: Tensor, rows: Rows, inverse: Tensor) -> Tensor:
        """Return the scores q_t . kk_{j,n} / sqrt(dk), [B, T, T*N]; the arguments are those of `forward`.

        A score is -inf where position t does not see position j.
        """
        return _scores(*self._query_and_keys(x, rows, inverse))

    def _query_and_keys(self, x: Tensor, rows: Rows, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, T, dk], the keys of all positions [B, T*N, dk], and the mask of visible keys [T, T*N]."""
        length = x.shape[1]
        query = self.query_proj(x)
        query = query if self.query_norm is None else self.query_norm(query)
        key = rows["key"][inverse]  # [B, T, N, dk]
        if self.rope_theta is not None:
            positions = torch.arange(length, device=x.device)
            query = rotate(query, positions, self.rope_theta)
            key = rotate(key, positions[:, None], self.rope_theta)
        visible = window_mask(length, self.window, x.device).repeat_interleave(key.shape[2], dim=1)  # [T, T*N]
        return query, key.flatten(1, 2), visible


def _scores(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    scores: Tensor = query @ key.mT * key.shape[-1] ** -0.5
    return scores.masked_fill(~visible, -torch.inf)


def _mixed_in_int8(weights: Tensor, value: Tensor) -> Tensor:
    """Return the weighted sum of values [B, T*N, d] with weights [B, T, T*N], computed in int8.

    Each value is rounded to codes from -127 to 127 with its own scale. The weights of a position are multiplied by the
    scales of the values. The products are then rounded with a step of 1/127 of the position's largest product
    (docs/bundle-format.md, "Int8 window").
    """
    codes, scale = _codes(value)
    scaled = weights * scale.mT
    largest = scaled.amax(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
    unit = torch.tensor(1 / 127, dtype=value.dtype)
    mixed: Tensor = (scaled / largest / unit).round() @ codes * unit * largest
    return mixed


def _codes(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int8 codes [..., d] of values, as floating-point numbers, and the scale of each value, [..., 1]."""
    scale = value.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale < torch.finfo(value.dtype).tiny, 0.0, scale)
    return torch.where(scale == 0, 0.0, (value / scale).round()), scale


class MolkvForCausalLM(LookupExpertForCausalLM):
    """A MoLKV language model."""

    plain_parameters = (".expert_mixer.gate.weight",)

    def __init__(self, config: MolkvConfig, form: Form = "training") -> None:
        super().__init__(config, form, lambda: KeyValueNetworks(config), lambda: MolkvMixer(config))

    def round_window(self) -> None:
        """Make every mixer round as a graph with an int8 window does."""
        for module in self.modules():
            if isinstance(module, MolkvMixer):
                module.rounds_window = True

    def in_window(self, records: ExactRecords) -> ExactRecords:
        """Return the records, with values rounded to int8 and decoded again."""
        layers = {}
        for layer, rows in records.layers.items():
            codes, scale = _codes(rows["value"])
            layers[layer] = {**rows, "value": codes * scale}
        return records._replace(layers=layers)

    def score_size(self) -> tuple[int | str, int]:
        """Return the name of the graph input that has the scores' shape, and the number of experts in a full window.

        The host may keep the experts of a window in any order, and the graph has the scores in the host's order.
        """
        return "expert_mask", self.config.expert_window * self.config.num_experts
