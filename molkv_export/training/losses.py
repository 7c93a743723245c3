"""The loss on held-out text, with the experts and without them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy

from molkv_export.modeling import ReferenceModel
from molkv_export.terminal import timed

_VALIDATION_WINDOWS = 128
_LOG = logging.getLogger(__name__)


@torch.no_grad()
def _mean_loss(
    model: ReferenceModel,
    ids: npt.NDArray[np.int64],
    sequence_length: int,
    advance: Callable[[int, int], object],
) -> float:
    """Return the mean negative log-likelihood in nats per token.

    Args:
        model: The model.
        ids: Token ids [n] of a text; the windows are spread evenly over the text.
        sequence_length: Number of tokens in a window.
        advance: Called after each window with 1 and the number of all windows.
    """
    available = (len(ids) - 1) // sequence_length
    starts = np.unique(np.linspace(0, available - 1, min(_VALIDATION_WINDOWS, available)).astype(int)) * sequence_length
    losses = []
    for start in starts:
        window = torch.from_numpy(ids[start : start + sequence_length + 1])
        losses.append(cross_entropy(model(window[None, :-1])[0], window[1:]).item())
        advance(1, len(starts))
    return float(np.mean(losses))


@contextmanager
def _experts_silenced(model: ReferenceModel) -> Iterator[None]:
    """Replace the output of the experts in every layer with zeros, to measure the loss without experts."""
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


def validation_losses(
    model: ReferenceModel, ids: npt.NDArray[np.int64], sequence_length: int, console: Console
) -> tuple[float, float]:
    """Return the validation losses with and without the experts, in nats per token; show progress on `console`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, timed(_LOG, "validation losses"):
        task = progress.add_task("validation", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, advance=done, total=2 * total)

        loss = _mean_loss(model, ids, sequence_length, advance)
        with _experts_silenced(model):
            return loss, _mean_loss(model, ids, sequence_length, advance)
