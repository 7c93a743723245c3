"""Is a provider to be trusted with this bundle?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from molkv_bundle import Bundle, ProviderError, max_abs, read_golden
from molkv_runtime.providers import PRESETS
from molkv_runtime.sequences import Sequences

_PROMPT = 20  # tokens, of a graph that takes any number
_STEPS = 2


def probe(bundle: Bundle, sequence: Callable[[int], Sequences], provider: str) -> None:
    """Run the longest golden text: a piece that each of the static graphs takes whole, then single steps.

    Args:
        bundle: What is run.
        sequence: Makes an empty sequence of it, for so many tokens.
        provider: Who computes.

    Raises:
        ProviderError: Logits are further from the source model's than the provider's arithmetic explains.
    """
    text = max(read_golden(bundle), key=lambda text: len(text.input_ids))
    limit = max_abs(bundle.graph()) + PRESETS[provider].max_abs
    sizes = [length + 1 for length in reversed(bundle.graph().lengths) if length > 1] or [_PROMPT]
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
        if not difference <= limit:  # written so that NaN is found
            raise ProviderError(
                f"provider {provider!r} computes wrong numbers: at position {position} of a golden text a "
                f"logit is {difference:.3g} from the source model's, expected at most {limit:g}; use another provider "
                f"or other options of this one, and see molkv-export selftest {bundle.path} --provider {provider}"
            )
