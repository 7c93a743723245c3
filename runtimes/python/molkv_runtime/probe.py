"""Is a provider to be trusted with this bundle?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from molkv_bundle import Bundle, ProviderError, read_golden
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
    golden = read_golden(bundle)
    text = max(golden.texts, key=lambda text: len(text.input_ids))
    limit = golden.limits_beside(PRESETS[provider].max_abs).max_abs
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
                f"logit is {difference:.3g} from the source model's, expected at most {limit:.2g}; "
                "use another provider or other options of this one, "
                f"and see molkv-export selftest {bundle.path} --provider {provider}"
            )
