"""Is a provider to be trusted with this bundle?"""

from __future__ import annotations

import numpy as np

from molkv_runtime.bundle import Bundle
from molkv_runtime.errors import ProviderError
from molkv_runtime.golden import max_abs, read_golden
from molkv_runtime.providers import PRESETS
from molkv_runtime.sequences import Sequences


def probe(bundle: Bundle, state: Sequences, provider: str) -> None:
    """Run the first golden text: as a prompt, which uses the graphs for several positions, and on by single steps.

    Args:
        bundle: What is run.
        state: An empty sequence of it.
        provider: Who computes.

    Raises:
        ProviderError: Logits are further from the source model's than the provider's arithmetic explains.
    """
    text = read_golden(bundle)[0]
    limit = max_abs(bundle.graph()) + PRESETS[provider].max_abs
    steps = min(2, len(text.input_ids) - 1)
    prompt = len(text.input_ids) - steps
    logits = [state.prefill(0, text.input_ids[:prompt])]
    logits += [state.decode(text.input_ids[at : at + 1]).copy() for at in range(prompt, prompt + steps)]
    for position, found in enumerate(logits, start=prompt - 1):
        difference = float(np.abs(found[0, text.top_ids[position]] - text.top_logits[position]).max())
        if not difference <= limit:  # written so that NaN is found
            raise ProviderError(
                f"provider {provider!r} computes wrong numbers: at position {position} of the first golden text a "
                f"logit is {difference:.3g} from the source model's, expected at most {limit:g}; use another provider "
                f"or other options of this one, and see molkv-export selftest {bundle.path} --provider {provider}"
            )
