"""A model of the size of MoLE-160M with a store of a given size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from molkv_bundle import LookupExpertConfig, ModelConfig, MolkvConfig, record_dtype
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.families import reference_model
from molkv_export.tables.rows import SomeRows

_RANDOM_ROWS = 4096


def model_config(store_bytes: int) -> MolkvConfig:
    """Return the configuration of a model with enough token ids for the size of the store.

    The model has 12 layers of hidden size 768, 4 experts per layer with keys of size 64, and an expert window of 64.
    The expert networks are small, since their speed is not measured.
    """
    config = MolkvConfig(
        model_type="molkv",
        vocab_size=1,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
        num_experts=4,
        expert_key_size=64,
        expert_window=64,
        expert_intermediate_size=16,
    )
    return msgspec.structs.replace(config, vocab_size=-(-store_bytes // record_dtype(config, "float16").itemsize))


def write_checkpoint(config: LookupExpertConfig, folder: Path) -> Path:
    """Write a checkpoint with random weights, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = reference_model(config)
    model.initialize(seed=0)
    save_file(tensors_to_save(model), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


class RandomRows:
    """A source of rows that are already in RAM, so that only the writing is measured."""

    ids_at_once = 1024
    working_bytes = 0
    piece_bytes = 0
    loads_networks = False

    def __init__(self, config: MolkvConfig) -> None:
        self.config: ModelConfig = config
        generator = torch.Generator().manual_seed(0)
        self._embedding = torch.randn(_RANDOM_ROWS, config.hidden_size, generator=generator).half()
        shape = (_RANDOM_ROWS, config.num_experts)
        self._key = torch.randn(*shape, config.expert_key_size, generator=generator).half()
        self._value = torch.randn(*shape, config.hidden_size, generator=generator).half()

    def embedding(self, start: int, stop: int) -> Tensor:
        """Return the embeddings of token ids `start` to `stop` - 1."""
        return self._rows(self._embedding, start, stop)

    def pieces(self, start: int, stop: int) -> Iterator[SomeRows]:
        """Yield the keys and values of token ids `start` to `stop` - 1.

        All layers use the same array of random rows. Each layer begins at another row.
        """
        for first, layer in product(range(start, stop, self.ids_at_once), self.config.layers_with_experts):
            ids = range(first, min(stop, first + self.ids_at_once))
            for name, random in (("key", self._key), ("value", self._value)):
                rows = partial(self._rows, random, ids.start + 97 * layer, ids.stop + 97 * layer)
                yield SomeRows(layer, ids, name, slice(None), rows)

    def _rows(self, random: Tensor, start: int, stop: int) -> Tensor:
        at = start % (_RANDOM_ROWS - (stop - start) + 1)
        return random[at : at + stop - start]
