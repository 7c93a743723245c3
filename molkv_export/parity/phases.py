"""The ways in which a bundle can run the same tokens; each must give the same logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from molkv_bundle import Floats, ModelConfig
from molkv_runtime import Generator, Sequences

Ids = npt.NDArray[np.int64]
Phase = Callable[[Generator, Ids], Floats]

_LAST_STEPS = 16


def window(config: ModelConfig) -> int:
    """Give the length of the expert window, or where there is none a length to cut texts by."""
    return max(2, config.expert_window)


def one_shot_prefill(generator: Generator, ids: Ids) -> Floats:
    """All tokens [T] at once (what does not fill a block of the window in a second call); logits [T, vocab_size]."""
    return generator.sequences(prefill_chunk=len(ids)).prefill(0, ids, all_logits=True)


def chunked_prefill(generator: Generator, ids: Ids) -> Floats:
    """The tokens in pieces around the window's length: shorter, equal, longer, a multiple and a rest."""
    size = window(generator.config)
    state = generator.sequences(prefill_chunk=2 * size)
    logits, start = [], 0
    for length in (1, size - 1, size, size + 1, len(ids)):
        piece = ids[start : start + length]
        if len(piece):
            logits.append(state.prefill(0, piece, all_logits=True))
        start += len(piece)
    return np.concatenate(logits)


def step_by_step_decode(generator: Generator, ids: Ids) -> Floats:
    """The first token as a prompt, every other one as a decode step."""
    state = generator.sequences()
    return np.concatenate([state.prefill(0, ids[:1]), *_decode(state, ids[1:])])


def window_wrap_around(generator: Generator, ids: Ids) -> Floats:
    """Decode over the ring's seam: prefill one token less than the window, then decode three windows more."""
    size = window(generator.config)
    state = generator.sequences()
    return np.concatenate(
        [state.prefill(0, ids[: size - 1], all_logits=True), *_decode(state, ids[size - 1 : 4 * size])]
    )


def context_end(generator: Generator, ids: Ids) -> Floats:
    """A text [T] as long as the model's context: prefill, then decode up to the very last position.

    Gives the logits of the last positions alone, [n, vocab_size].
    """
    steps = min(_LAST_STEPS, len(ids) - 1)
    state = generator.sequences()
    return np.concatenate([state.prefill(0, ids[: len(ids) - steps]), *_decode(state, ids[len(ids) - steps :])])


def mixed_batch(generator: Generator, texts: list[Ids]) -> list[Floats]:
    """Prompts of different length [T_b] decoded together; each stops growing at its own end.

    Gives one array of logits [T_b, vocab_size] for each text.
    """
    prompts = [max(1, len(ids) * (index + 1) // (len(texts) + 2)) for index, ids in enumerate(texts)]
    state = generator.sequences(len(texts))
    logits = [
        [state.prefill(index, ids[:prompt], all_logits=True)]
        for index, (ids, prompt) in enumerate(zip(texts, prompts, strict=True))
    ]
    ends = np.array([len(ids) for ids in texts])
    while (active := state.lengths < ends).any():
        positions = np.minimum(state.lengths, ends - 1).tolist()
        step = state.decode([ids[position] for ids, position in zip(texts, positions, strict=True)], active)
        for index in np.flatnonzero(active):
            logits[index].append(step[index : index + 1].copy())
    return [np.concatenate(parts) for parts in logits]


def _decode(state: Sequences, ids: Ids) -> list[Floats]:
    return [state.decode(ids[t : t + 1]).copy() for t in range(len(ids))]


# They give the logits of a text's first positions; window_wrap_around stops after four windows.
PHASES: dict[str, Phase] = {
    "one-shot prefill": one_shot_prefill,
    "chunked prefill": chunked_prefill,
    "step-by-step decode": step_by_step_decode,
    "window wrap-around": window_wrap_around,
}
MIXED_BATCH = "mixed batch"
CONTEXT_END = "context end"
