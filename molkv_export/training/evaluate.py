"""Loss of a reference model on text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from molkv_export.modeling import ReferenceModel


@torch.no_grad()
def mean_loss(model: ReferenceModel, ids: npt.NDArray[np.int64], sequence_length: int, max_windows: int) -> float:
    """Mean negative log-likelihood in nats per token, over windows spread evenly through a token stream [n]."""
    available = (len(ids) - 1) // sequence_length
    starts = np.unique(np.linspace(0, available - 1, min(max_windows, available)).astype(int)) * sequence_length
    losses = []
    for start in starts:
        window = torch.from_numpy(ids[start : start + sequence_length + 1])
        losses.append(cross_entropy(model(window[None, :-1])[0], window[1:]).item())
    return float(np.mean(losses))


@contextmanager
def experts_silenced(model: ReferenceModel) -> Iterator[None]:
    """Make every expert branch add nothing, to see what the experts are worth."""
    handles = [
        tap.module.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        for tap in model.taps()
        if tap.branch == "experts"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
