"""Tensors and names that differ from the model's, and what that means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import torch

from molkv_bundle import CheckpointError, LookupExpertConfig
from molkv_export.checkpoints.weights import Weights

_FREQUENCIES = re.compile(r"(.+\.)?rotary_emb\.inv_freq")
_FLOAT32_STEPS = 32  # libraries compute powers in float32; with bases up to 1e7 they are off by up to 10 steps


def follows_from_config(name: str, weights: Weights, config: LookupExpertConfig, source: str) -> bool:
    """Tell whether a tensor holds only what the configuration says: RoPE's frequencies, as old Llama code saves them.

    Args:
        name: The tensor's name.
        weights: What holds it.
        config: The model.
        source: The name of the file that the configuration is from.

    Raises:
        CheckpointError: It holds other frequencies, so the model rotates otherwise.
    """
    if not _FREQUENCIES.fullmatch(name):
        return False
    half = config.head_dim // 2
    weights.check(name, (half,), source)
    found = weights.read(name, 0, half, 0, 1)
    exact = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    dtype = torch.finfo(found.dtype)
    relative = dtype.eps / 2 + _FLOAT32_STEPS * torch.finfo(torch.float32).eps
    wrong = (found.double() - exact).abs() > relative * exact + dtype.smallest_normal * dtype.eps
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise CheckpointError(
            f"{weights.path_of(name)}: tensor {name!r} holds {found[index].item():.6g} at {index}, expected "
            f"{exact[index].item():.6g} by rope_theta {config.rope_theta:g} of {source}; a model with a scaled RoPE "
            "cannot be exported"
        )
    return True


def other_prefix(expected: str, found: Collection[str]) -> str:
    """Say, for an error, that names begin otherwise than expected; empty if they do not.

    Args:
        expected: The name of a tensor that every model has and this checkpoint does not, of three parts or more.
        found: The names of all tensors.
    """
    for tail in _tails(expected):
        for name in sorted(found):
            if name != tail and not name.endswith(f".{tail}"):
                continue
            theirs, ours = name.removesuffix(tail), expected.removesuffix(tail)
            who = "every tensor begins" if all(other.startswith(theirs) for other in found) else "tensors begin"
            if not theirs:
                return f"; names lack {ours!r} at their beginning"
            return f"; {who} with {theirs!r}, expected {repr(ours) if ours else 'none'}"
    return ""


def _tails(name: str) -> Iterable[str]:
    """Return a name without its first parts, longest first; at least two parts are left."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))
