"""The decoder-only transformer that MoLE and MoLKV share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from molkv_bundle import LookupExpertConfig
from molkv_export.modeling.layers import Attention, FeedForward, RMSNorm
from molkv_export.modeling.reference import ExactRecords, ExpertTables, Form, ReferenceModel, Rows, Tap, computed, given

Make = Callable[[], nn.Module]


class DecoderLayer(nn.Module):
    """A pre-norm layer: h = x + Attention(RMSNorm(x)); n = RMSNorm(h); y = h + FFN(n) + Mixer(n, experts)."""

    def __init__(self, config: LookupExpertConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.experts: nn.Module | None = None
        self.expert_mixer: nn.Module | None = None

    def forward(self, x: Tensor, rows: Rows | None, inverse: Tensor) -> Tensor:
        """Return the residual stream [B, T, d] after this layer.

        Args:
            x: The residual stream [B, T, d] before this layer.
            rows: Experts of U distinct token ids, for the mixer.
            inverse: For each position, the index of its token id among these ids, [B, T].
        """
        h = x + self.self_attn(self.input_layernorm(x))
        n = self.post_attention_layernorm(h)
        y: Tensor = h + self.mlp(n)
        if self.expert_mixer is not None:
            y = y + self.expert_mixer(n, rows, inverse)
        return y


class Decoder(nn.Module):
    """Input embedding, layers and final norm."""

    def __init__(self, config: LookupExpertConfig, experts: Make, mixer: Make) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        for index in range(config.num_hidden_layers):
            layer = DecoderLayer(config)
            if index in config.layers_with_experts:
                layer.experts, layer.expert_mixer = experts(), mixer()
            self.layers.append(layer)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LookupExpertForCausalLM(ReferenceModel):
    """Base class of the MoLE and MoLKV models, in training or lookup form.

    Parameters are named as in Hugging Face's Llama. A layer with experts has two more modules: `experts`, whose rows
    become the expert store, and `expert_mixer`, which becomes part of the dense graph.
    """

    config: LookupExpertConfig

    def __init__(self, config: LookupExpertConfig, form: Form, networks: Make, mixer: Make) -> None:
        """Create the model. Its parameters do not have trained values yet.

        Args:
            config: The model's configuration.
            form: Whether the experts are networks ("training") or tables ("lookup").
            networks: A function that creates the expert networks of one layer; it is used in training form only.
            mixer: A function that creates the mixer of one layer. A mixer takes three arguments: the normed residual
                stream [B, T, d], the `Rows` of U distinct token ids, and, for each position, the index of its token id
                among these ids, [B, T]. The mixer's method `scores` takes the same arguments.
        """
        super().__init__()
        self.config = config
        tables = partial(ExpertTables, config.vocab_size, config.record_vectors())
        self.model = Decoder(config, networks if form == "training" else tables, mixer)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, records: ExactRecords, inverse: Tensor) -> Tensor:
        """Return the input of the LM head, [B, T, d]; the arguments are those of `ReferenceModel.hidden`."""
        x = records.embedding[inverse]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, records.layers.get(index), inverse)
        normed: Tensor = self.model.norm(x)
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] for outputs of `hidden`, [..., d]."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def score_size(self) -> tuple[int | str, int]:
        """Return the fields `size` and `kept` of the `Tap` for a layer's expert scores."""
        raise NotImplementedError

    def taps(self) -> list[Tap]:
        """Return the taps of every layer, then those after the last layer: residual stream, final norm and logits."""
        found, d = [], self.config.hidden_size
        layer: Any  # torch's type hints do not include the attributes of the modules in a ModuleList
        for index, layer in enumerate(self.model.layers):
            found += [
                Tap(index, "residual", layer, given, d),
                Tap(index, "input_norm", layer.input_layernorm, computed, d),
                Tap(index, "attention", layer.self_attn, computed, d),
                Tap(index, "post_attention_norm", layer.post_attention_layernorm, computed, d),
                Tap(index, "feed_forward", layer.mlp, computed, d),
            ]
            if (mixer := layer.expert_mixer) is not None:
                found.append(Tap(index, "expert_scores", mixer, _scores(mixer), *self.score_size()))
                found.append(Tap(index, "experts", mixer, computed, d))
        return [
            *found,
            Tap(None, "residual", self.model.norm, given, d),
            Tap(None, "norm", self.model.norm, computed, d),
            Tap(None, "logits", self.lm_head, computed, self.config.vocab_size),
        ]

    def cached(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules that compute a layer's keys (before rotation) and its values."""
        attention: Any = self.model.layers[layer].self_attn
        return attention.k_proj, attention.v_proj


def _scores(mixer: Any) -> Callable[[tuple[Any, ...], Tensor], Tensor]:
    def scores(inputs: tuple[Any, ...], _output: Tensor) -> Tensor:
        found: Tensor = mixer.scores(*inputs)
        return found

    return scores
