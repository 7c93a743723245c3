"""What every family's reference model offers, and how records become its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from molkv_bundle import ModelConfig, Vector

Form = Literal["training", "lookup"]
Rows = dict[str, Tensor]  # the vectors of one layer by name, [U, *shape] for U token ids


class ExactRecords(NamedTuple):
    """Everything that is stored for U token ids, not rounded."""

    embedding: Tensor  # [U, d]
    layers: dict[int, Rows]  # by layer index


class Tap(NamedTuple):
    """A value inside the model, which the dense graph has under the same name."""

    layer: int | None  # None: behind the last layer
    branch: str
    module: nn.Module
    value: Callable[[tuple[Any, ...], Tensor], Tensor]  # the value [B, T, ...] of the module's inputs and output
    size: int | str  # of its last dimension; or the graph's input that has the same shape
    kept: int = 0  # not 0: scores in any order, of which so many are ever seen by a position

    @property
    def name(self) -> str:
        """Name of the value in the graph."""
        return tap_name(self.branch, self.layer)


def tap_name(branch: str, layer: int | None = None) -> str:
    """Name a value of a layer, or one behind the last layer."""
    return branch if layer is None else f"layers.{layer}.{branch}"


def given(inputs: tuple[Any, ...], _output: Tensor) -> Tensor:
    """Return a module's first input."""
    value: Tensor = inputs[0]
    return value


def computed(_inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return a module's output."""
    return output


class ReferenceModel(nn.Module):
    """A causal language model that reads of a token id what `records` returns, and nothing else.

    Parameters that depend on the token id alone are `model.embed_tokens.weight` and those of `experts`; all others go
    into the dense graph, under the same names.
    """

    config: ModelConfig

    plain_parameters: tuple[str, ...] = ()
    """How the names of matrices end that are float32 in every graph, since they are not worth quantizing."""

    def experts(self, layer: int) -> nn.Module:
        """Return the module `model.layers.{layer}.experts`.

        Called with token ids [U] and their embeddings [U, d] it returns `Rows`. In lookup form its parameters are
        tables [vocab_size, *shape], one for each vector, named like it with an "s".
        """
        return self.get_submodule(f"model.layers.{layer}.experts")

    def records(self, ids: Tensor) -> ExactRecords:
        """Return the records of token ids [U]."""
        embedding = self.get_submodule("model.embed_tokens")(ids)
        return ExactRecords(
            embedding, {layer: self.experts(layer)(ids, embedding) for layer in self.config.layers_with_experts}
        )

    def hidden(self, records: ExactRecords, inverse: Tensor) -> Tensor:
        """Compute what the LM head reads, [B, T, d].

        Args:
            records: Of the U distinct token ids at hand.
            inverse: Which of those ids stands at each position, [B, T].
        """
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits [..., vocab_size] of what `hidden` returns, [..., d]."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute logits [B, T, vocab_size] for token ids [B, T] at positions 0 to T-1."""
        # Rows depend on the id alone, so each distinct id is computed once.
        ids, inverse = torch.unique(input_ids, return_inverse=True)
        return self.head(self.hidden(self.records(ids), inverse))

    def taps(self) -> list[Tap]:
        """Return the values that parity compares layer by layer, in the order in which they are computed.

        The first is what enters layer 0, and the last is the logits.
        """
        raise NotImplementedError

    def cached(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules that compute the keys, before they are rotated, and the values of a layer's KV cache."""
        raise NotImplementedError

    def round_window(self) -> None:
        """Round as a graph with an int8 expert window does; models whose configuration has no such graph lack this."""
        raise NotImplementedError

    def in_window(self, records: ExactRecords) -> ExactRecords:
        """Return records with the vectors of an int8 expert window rounded as they are when they enter it."""
        raise NotImplementedError

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


class ExpertTables(nn.Module):
    """Lookup form: rows are read from tables that hold them for every id of the vocabulary."""

    def __init__(self, vocab_size: int, vectors: tuple[Vector, ...]) -> None:
        super().__init__()
        self._names = [vector.name for vector in vectors]
        for vector in vectors:
            self.register_parameter(f"{vector.name}s", nn.Parameter(torch.zeros(vocab_size, *vector.shape)))

    def forward(self, ids: Tensor, embedding: Tensor) -> Rows:  # noqa: ARG002
        """Look up the rows of the token ids [U]."""
        return {name: self.get_parameter(f"{name}s")[ids] for name in self._names}
