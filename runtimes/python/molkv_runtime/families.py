"""The state that each family of models needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from molkv_bundle import ModelConfig, WindowDtype
from molkv_runtime.experts import ExpertState, InputFormat, PresentExperts
from molkv_runtime.record_decoder import RecordDecoder
from molkv_runtime.window import molkv_state, molkv_state_bytes


class Family(NamedTuple):
    """The driver's functions for one family."""

    state: Callable[[Any, int, int, InputFormat, RecordDecoder], ExpertState]
    """Makes the expert state: (config, batch size, longest sequence, format of the graph's inputs, decoder)."""
    state_bytes: Callable[[Any, int, WindowDtype], int] = lambda _config, _length, _window_dtype: 0
    """A function that returns the bytes of one sequence's state: (config, longest sequence, dtype of window values)."""


FAMILIES: dict[str, Family] = {
    "mole": Family(PresentExperts),
    "molkv": Family(molkv_state, molkv_state_bytes),
    "gemma4_text": Family(PresentExperts),
}
"""The functions of each family, by `model_type`. A new family adds an entry (docs/architecture.md)."""


def expert_state(
    config: ModelConfig, batch_size: int, max_length: int, inputs: InputFormat, decoder: RecordDecoder
) -> ExpertState:
    """Return a new expert state for `batch_size` sequences of at most `max_length` tokens."""
    return FAMILIES[config.model_type].state(config, batch_size, max_length, inputs, decoder)


def window_bytes(config: ModelConfig, length: int, window_dtype: WindowDtype = "float32") -> int:
    """Return the bytes of the expert state (MoLKV's window) of one sequence of `length` tokens."""
    return FAMILIES[config.model_type].state_bytes(config, length, window_dtype)
