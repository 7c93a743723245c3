"""Names of the values inside a dense graph that a comparison with the reference model looks at.

They cost nothing: a value has to have some name, and no one reads it unless it is asked for as an output.
"""

from __future__ import annotations

from typing import Literal

from molkv_bundle import ModelConfig

Branch = Literal[
    "residual",  # what enters a layer, and behind the last one what enters the final norm
    "input_norm",
    "attention",
    "post_attention_norm",
    "feed_forward",
    "expert_scores",
    "experts",
    "norm",  # the final one
    "logits",
]


def tap_name(branch: Branch, layer: int | None = None) -> str:
    """Name a value of a layer, or one behind the last layer."""
    return branch if layer is None else f"layers.{layer}.{branch}"


def taps(config: ModelConfig) -> list[tuple[int | None, Branch]]:
    """List all of them as (layer, branch), in the order in which they are computed."""
    found: list[tuple[int | None, Branch]] = []
    for layer in range(config.num_hidden_layers):
        branches: list[Branch] = ["residual", "input_norm", "attention", "post_attention_norm", "feed_forward"]
        if layer in config.layers_with_experts:
            branches += ["expert_scores", "experts"]
        found += [(layer, branch) for branch in branches]
    return [*found, (None, "residual"), (None, "norm"), (None, "logits")]
