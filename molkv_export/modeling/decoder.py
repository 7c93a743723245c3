"""The decoder-only transformer with lookup experts, whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig
from molkv_export.modeling.attention import Attention
from molkv_export.modeling.experts import ExpertNetworks, ExpertRows, ExpertTables, Form, Records
from molkv_export.modeling.feed_forward import FeedForward
from molkv_export.modeling.mole import MoleMixer
from molkv_export.modeling.molkv import MolkvMixer
from molkv_export.modeling.norm import RMSNorm


class DecoderLayer(nn.Module):
    """h = x + Attention(RMSNorm(x)); n = RMSNorm(h); y = h + FFN(n) + Mixer(n, experts)."""

    def __init__(self, config: ModelConfig, has_experts: bool, form: Form) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.experts: ExpertNetworks | ExpertTables | None = None
        self.expert_mixer: MoleMixer | MolkvMixer | None = None
        if has_experts:
            self.experts = ExpertNetworks(config) if form == "training" else ExpertTables(config)
            self.expert_mixer = MolkvMixer(config) if config.has_keys else MoleMixer(config)

    def forward(self, x: Tensor, rows: ExpertRows | None, inverse: Tensor) -> Tensor:
        """Map the residual stream [B, T, d] to the next layer's; rows and inverse as in the mixers."""
        h = x + self.self_attn(self.input_layernorm(x))
        n = self.post_attention_layernorm(h)
        y: Tensor = h + self.mlp(n)
        if self.expert_mixer is not None:
            y = y + self.expert_mixer(n, rows, inverse)
        return y


class Decoder(nn.Module):
    """Input embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, form: Form) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index in config.layers_with_experts, form) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LookupExpertForCausalLM(nn.Module):
    """A MoLE, MoLKV or (num_experts 0) dense language model in training or lookup form.

    Names of parameters follow Llama in Hugging Face, plus per layer with experts `experts` (what becomes the expert
    store) and `expert_mixer` (what goes into the dense graph).
    """

    def __init__(self, config: ModelConfig, form: Form = "training") -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, form)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def records(self, ids: Tensor) -> Records:
        """Give the records of token ids [U]: all that the model ever reads of them."""
        embedding = self.model.embed_tokens(ids)
        layers = [self.model.layers[index] for index in self.config.layers_with_experts]
        rows = [layer.experts(ids, embedding) for layer in layers]  # type: ignore[operator]
        return Records(embedding, dict(zip(self.config.layers_with_experts, rows, strict=True)))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Compute what the LM head reads, [B, T, d], for token ids [B, T] at positions 0 to T-1."""
        # Rows depend on the id alone, so each distinct id is computed once.
        ids, inverse = torch.unique(input_ids, return_inverse=True)
        records = self.records(ids)
        x = records.embedding[inverse]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, records.experts.get(index), inverse)
        normed: Tensor = self.model.norm(x)
        return normed

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute logits [B, T, vocab_size] for token ids [B, T] at positions 0 to T-1."""
        logits: Tensor = self.lm_head(self.hidden(input_ids))
        return logits

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw fresh weights: normal with std 0.02, scaled down by sqrt(2 * layers) where a branch ends (GPT-2).

        Experts are not scaled down (our choice): a mixer averages many of them, which makes its branch small already.
        """
        generator = torch.Generator().manual_seed(seed)
        branch_ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:  # norm weights
                parameter.fill_(1.0)
                continue
            std = 0.02 / (2 * self.config.num_hidden_layers) ** 0.5 if name.endswith(branch_ends) else 0.02
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
