"""A short test of whether a provider computes right numbers for a bundle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from molkv_bundle import Bundle, ProviderError, read_golden
from molkv_runtime.providers import PRESETS
from molkv_runtime.sequences import Sequences

_PROMPT = 100  # tokens, for a graph of any length; some kernels for GPUs are used from 32 positions on
_STEPS = 2


def probe(bundle: Bundle, sequence: Callable[[int], Sequences], provider: str) -> None:
    """Compute the beginning of the longest golden text, and compare its logits.

    For each static graph there is one piece of the prompt, which needs no padding. For a graph of any length, the
    prompt is one piece of at most 100 tokens. Two decode steps follow.

    Args:
        bundle: The bundle to run.
        sequence: A function that returns a new, empty sequence with room for the given number of tokens.
        provider: The name of the provider's preset.

    Raises:
        ProviderError: A logit differs from the golden one by more than the provider's rounding can cause.
    """
    golden = read_golden(bundle)
    text = max(golden.texts, key=lambda text: len(text.input_ids))
    limit = golden.limits_beside(PRESETS[provider].max_abs).max_abs
    prompt = max(1, min(_PROMPT, len(text.input_ids) - _STEPS))
    sizes = [length + 1 for length in reversed(bundle.graph().lengths) if length > 1] or [prompt]
    ids = text.input_ids[: sum(sizes) + _STEPS]
    state = sequence(len(ids))
    for size in [*sizes, *[1] * _STEPS]:
        start = int(state.lengths[0])
        piece = ids[start : start + size]
        if not len(piece):
            return
        found = state.prefill(0, piece) if size > 1 else state.decode(piece)
        position = start + len(piece) - 1
        difference = float(np.abs(found[0, text.top_ids[position]] - text.top_logits[position]).max())
        if not difference <= limit:  # NaN fails this comparison, too
            raise ProviderError(
                f"provider {provider!r} computes wrong numbers: at position {position} of a golden text a "
                f"logit differs by {difference:.3g} from that of the source model, expected at most {limit:.2g}; "
                "use another provider or other options of this provider; for details: "
                f"molkv-export selftest {bundle.where} --provider {provider}"
            )
