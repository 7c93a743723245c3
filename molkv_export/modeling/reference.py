"""The interface of every family's reference model, and experts in lookup form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig, Vector

Form = Literal["training", "lookup"]
Rows = dict[str, Tensor]  # the vectors of one layer by name, [U, *shape] for U token ids


class ExactRecords(NamedTuple):
    """The records of U token ids, before rounding."""

    embedding: Tensor  # [U, d]
    layers: dict[int, Rows]  # by the index of the layer


class Tap(NamedTuple):
    """A named value [B, T, ...] inside the model, to be compared with the value of this name in the dense graph."""

    layer: int | None  # None: after the last layer
    branch: str  # the kind of value, such as "attention" or "expert_scores"
    module: nn.Module
    value: Callable[[tuple[Any, ...], Tensor], Tensor]  # computes the value from the module's inputs and output
    size: int | str  # size of the value's last dimension, or the name of a graph input that has the value's shape
    kept: int = 0
    """For expert scores, the largest number of scores that a position sees; else 0. The graph may order the scores
    differently, so parity sorts them."""

    @property
    def name(self) -> str:
        """Name of the value in the graph."""
        return tap_name(self.branch, self.layer)


def tap_name(branch: str, layer: int | None = None) -> str:
    """Return the name of a value in the graph; `layer` is None for a value after the last layer."""
    return branch if layer is None else f"layers.{layer}.{branch}"


def given(inputs: tuple[Any, ...], _output: Tensor) -> Tensor:
    """Return a module's first input."""
    value: Tensor = inputs[0]
    return value


def computed(_inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return a module's output."""
    return output


class ReferenceModel(nn.Module):
    """A causal language model. `records` returns all data of the model that belong to single token ids.

    The parameter `model.embed_tokens.weight` and the parameters of `experts` become records. All other parameters go
    into the dense graph under the same names.
    """

    config: ModelConfig

    plain_parameters: tuple[str, ...] = ()
    """Suffixes of the names of matrices that are never quantized, because they are small."""

    def experts(self, layer: int) -> nn.Module:
        """Return the module `model.layers.{layer}.experts`.

        The module is called with token ids [U] and their embeddings [U, d], and returns `Rows`. In lookup form its
        parameters are tables [vocab_size, *shape], one for each vector. The name of a table is the name of its vector
        with an "s" at the end.
        """
        return self.get_submodule(f"model.layers.{layer}.experts")

    def records(self, ids: Tensor) -> ExactRecords:
        """Return the records of token ids [U]."""
        embedding = self.get_submodule("model.embed_tokens")(ids)
        return ExactRecords(
            embedding, {layer: self.experts(layer)(ids, embedding) for layer in self.config.layers_with_experts}
        )

    def hidden(self, records: ExactRecords, inverse: Tensor) -> Tensor:
        """Return the input of the LM head, [B, T, d].

        Args:
            records: Records of U distinct token ids.
            inverse: For each position, the index of its token id among these ids, [B, T].
        """
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] for outputs of `hidden`, [..., d]."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits [B, T, vocab_size] for token ids [B, T] at positions 0 to T-1."""
        # Rows depend on the token id alone, so they are computed once for each distinct id.
        ids, inverse = torch.unique(input_ids, return_inverse=True)
        return self.head(self.hidden(self.records(ids), inverse))

    def taps(self) -> list[Tap]:
        """Return the values that parity compares layer by layer, in the order of their computation.

        The first tap is the input of layer 0. The last tap is the logits.
        """
        raise NotImplementedError

    def cached(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules that compute the keys (before rotation) and the values of a layer's KV cache."""
        raise NotImplementedError

    def round_window(self) -> None:
        """Make the model round as a graph with an int8 expert window does.

        Only families whose configuration has "int8" among its `window_dtypes` implement this.
        """
        raise NotImplementedError

    def in_window(self, records: ExactRecords) -> ExactRecords:
        """Return the records, with vectors rounded as the host rounds them for an int8 expert window."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Set norm weights to 1, and all other parameters to normally distributed numbers of standard deviation 0.02.

        As in GPT-2, the standard deviation is divided by sqrt(2 * layers) for the last matrix of attention and of the
        feed-forward network. It is not divided for experts (our choice): a mixer averages many experts, so its output
        is already small.
        """
        generator = torch.Generator().manual_seed(seed)
        branch_ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:  # norm weights
                parameter.fill_(1.0)
                continue
            std = 0.02 / (2 * self.config.num_hidden_layers) ** 0.5 if name.endswith(branch_ends) else 0.02
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


class ExpertTables(nn.Module):
    """Experts in lookup form: tables that hold the rows of every id of the vocabulary."""

    def __init__(self, vocab_size: int, vectors: tuple[Vector, ...]) -> None:
        super().__init__()
        self._names = [vector.name for vector in vectors]
        for vector in vectors:
            self.register_parameter(f"{vector.name}s", nn.Parameter(torch.zeros(vocab_size, *vector.shape)))

    def forward(self, ids: Tensor, embedding: Tensor) -> Rows:  # noqa: ARG002
        """Return the rows of token ids [U]."""
        return {name: getattr(self, f"{name}s")[ids] for name in self._names}
