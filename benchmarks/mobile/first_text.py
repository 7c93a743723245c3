"""`python -m benchmarks.mobile.first_text BUNDLE PROFILE PROVIDER [NAME=VALUE ...]`: the error of a provider.

The program runs the first golden text: all tokens except the last two as a prompt, then these two as decode steps. It
prints one line of JSON. It is a process of its own, since a provider may take very long or crash.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from molkv_bundle import Bundle, read_golden
from molkv_runtime import Generator, Target


def largest_difference(generator: Generator) -> tuple[float, float]:
    """Return the largest difference from a golden logit, and the seconds of the last step."""
    text = read_golden(generator.bundle).texts[0]
    ids, prompt = text.input_ids, len(text.input_ids) - 2
    state = generator.sequences()
    logits, spent = [state.prefill(0, ids[:prompt])], 0.0
    for token in ids[prompt:]:
        start = time.perf_counter()
        logits.append(state.decode(np.array([token])).copy())
        spent = time.perf_counter() - start
    found = np.concatenate(logits)
    positions = slice(prompt - 1, prompt + 2)
    at_top = np.take_along_axis(found, text.top_ids[positions].astype(np.intp), axis=-1)
    return float(np.abs(at_top - text.top_logits[positions]).max()), spent


def main() -> None:
    """Print the difference, the placement of nodes, and the seconds of loading and of a step."""
    folder, profile, provider, *options = sys.argv[1:]
    pairs = dict(option.split("=", 1) for option in options)
    start = time.perf_counter()
    target = Target(provider, pairs, required=True)
    generator = Generator(Bundle(folder, profile=profile), target=target, verify_provider=False)
    loaded = time.perf_counter() - start
    difference, step = largest_difference(generator)
    placed = "; ".join(
        " and ".join(f"{place.nodes} nodes in {place.partitions} partition" for place in places)
        for places in generator.placements.values()
    )
    print(json.dumps({"difference": difference, "placed": placed, "load": loaded, "step": step}))


if __name__ == "__main__":
    main()
