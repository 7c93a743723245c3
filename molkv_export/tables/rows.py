"""The records of a checkpoint, computed (training form) or read (lookup form) in chunks of token ids."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.native import EMBEDDING
from molkv_export.modeling.experts import ExpertNetworks, ExpertRows, Records

_CHUNK_BYTES = 16 * 1024 * 1024


def records_in_chunks(checkpoint: Checkpoint) -> Iterator[tuple[int, Records]]:
    """Yield (first id, records) for all token ids, ascending, about 16 MiB at a time, as float32.

    The chunks depend on the model's shape alone, so that an export gives the same bytes every time.
    """
    config = checkpoint.config
    per_expert = config.hidden_size + (config.expert_key_size if config.has_keys else 0)
    values = config.hidden_size + len(config.layers_with_experts) * config.num_experts * per_expert
    activations = 4 * config.expert_intermediate_size if checkpoint.form == "training" else 0  # of one network
    count = max(1, _CHUNK_BYTES // (4 * (values + activations)))
    networks = _networks(checkpoint) if checkpoint.form == "training" else None
    for start in range(0, config.vocab_size, count):
        stop = min(config.vocab_size, start + count)
        embedding = checkpoint.tensor(EMBEDDING, start, stop)
        if networks is None:
            experts = {layer: _stored(checkpoint, layer, start, stop) for layer in config.layers_with_experts}
        else:
            with torch.no_grad():
                ids = torch.arange(start, stop)
                experts = {layer: network(ids, embedding) for layer, network in networks.items()}
        yield start, Records(embedding, experts)


def _networks(checkpoint: Checkpoint) -> dict[int, ExpertNetworks]:
    networks = {}
    for layer in checkpoint.config.layers_with_experts:
        networks[layer] = ExpertNetworks(checkpoint.config)
        checkpoint.load_into(networks[layer], f"model.layers.{layer}.experts.")
    return networks


def _stored(checkpoint: Checkpoint, layer: int, start: int, stop: int) -> ExpertRows:
    prefix = f"model.layers.{layer}.experts."
    key = checkpoint.tensor(f"{prefix}keys", start, stop) if checkpoint.config.has_keys else None
    return ExpertRows(key, checkpoint.tensor(f"{prefix}values", start, stop))
