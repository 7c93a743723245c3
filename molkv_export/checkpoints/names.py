"""Which tensors a checkpoint of our own format holds."""

from __future__ import annotations

import torch

from molkv_export.modeling import LookupExpertForCausalLM


def state_dict_to_save(model: LookupExpertForCausalLM) -> dict[str, torch.Tensor]:
    """Give the tensors of a checkpoint: the parameters by name, a tied LM head only once, as the embedding."""
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
