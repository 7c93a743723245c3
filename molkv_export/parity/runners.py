"""Runners, which compute the logits of a text: the source model, and the host driver in each of its phases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from molkv_bundle import Bundle, Floats, RequestError
from molkv_export.golden import window
from molkv_export.graph.files import load_graphs, weights_file
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_export.source.model import Ids, SourceModel
from molkv_runtime import Generator, Sequences, Store, Target, resolve

Phase = Callable[[Generator, Ids], Floats]

_LAST_STEPS = 16

MIXED_BATCH = "mixed batch"
CONTEXT_END = "context end"
ONNX_REFERENCE = "onnx-reference"


def one_shot_prefill(generator: Generator, ids: Ids) -> Floats:
    """Prefill all tokens [T] at once; return logits [T, vocab_size].

    If the last tokens do not fill a block of the expert window, a second call computes them.
    """
    return generator.sequences(prefill_chunk=len(ids)).prefill(0, ids, all_logits=True)


def chunked_prefill(generator: Generator, ids: Ids) -> Floats:
    """Prefill the tokens in pieces.

    With an expert window of W tokens, the first pieces have 1, W - 1, W and W + 1 tokens. The last piece has all other
    tokens, so it usually has several full chunks and an incomplete one.
    """
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
    """Prefill the first token, then decode every other token in one step each."""
    state = generator.sequences()
    return np.concatenate([state.prefill(0, ids[:1]), *_decode(state, ids[1:])])


def window_wrap_around(generator: Generator, ids: Ids) -> Floats:
    """Prefill W - 1 tokens, where W is the expert window; decode up to 4 W tokens, so that the ring wraps around."""
    size = window(generator.config)
    state = generator.sequences()
    return np.concatenate(
        [state.prefill(0, ids[: size - 1], all_logits=True), *_decode(state, ids[size - 1 : 4 * size])]
    )


def context_end(generator: Generator, ids: Ids) -> Floats:
    """Prefill a text [T] as long as the model's context, except the last 16 tokens; decode these tokens.

    Returns:
        Logits of the last positions only, [n, vocab_size].
    """
    steps = min(_LAST_STEPS, len(ids) - 1)
    state = generator.sequences()
    return np.concatenate([state.prefill(0, ids[: len(ids) - steps]), *_decode(state, ids[len(ids) - steps :])])


def mixed_batch(generator: Generator, texts: list[Ids]) -> list[Floats]:
    """Prefill prompts of different lengths, then decode the rest of all texts [T_b] as one batch.

    Returns:
        One array of logits [T_b, vocab_size] for each text.
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


# Each phase returns logits from the first position on. `window_wrap_around` stops after four expert windows; the other
# phases run the whole text.
PHASES: dict[str, Phase] = {
    "one-shot prefill": one_shot_prefill,
    "chunked prefill": chunked_prefill,
    "step-by-step decode": step_by_step_decode,
    "window wrap-around": window_wrap_around,
}


class Runner(Protocol):
    """A runtime with a loaded model."""

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Compute the logits of token ids [T] at positions 0 to T-1.

        Args:
            ids: Token ids of the text.
            last: Number of final positions to return; 0 means all.

        Returns:
            float32 [last or T, vocab_size].
        """


class SourceRunner:
    """The source model in PyTorch: as trained, or with records rounded as in a store, if a store is given."""

    def __init__(self, model: SourceModel, store: Store | None = None) -> None:
        self.model, self._store = model, store

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Compute all logits in one pass, without cache and state."""
        return self.model.logits(ids, self._store, last)


class DriverRunner:
    """A bundle in the host driver, run in one phase."""

    def __init__(self, generator: Generator, phase: Phase = one_shot_prefill) -> None:
        self._generator, self._phase = generator, phase

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Compute the logits, beginning with an empty state."""
        return self._phase(self._generator, ids)[-last:]


def open_bundle(bundle: str | Path, target: Target, profile: str = "") -> Bundle:
    """Open a bundle for one of its profiles; by default, for the best profile for the provider."""
    profiles = () if target.provider == ONNX_REFERENCE else resolve(target.provider).profiles
    return Bundle(bundle, profiles=profiles, profile=profile)


def load_generator(bundle: Bundle, target: Target) -> Generator:
    """Load a bundle into the host driver.

    Args:
        bundle: Open bundle.
        target: Provider that runs the graph, and its options. The additional provider "onnx-reference" computes the
            graph in numpy, operator by operator, with `onnx.reference.ReferenceEvaluator`. The evaluator is slow, but
            uses no code of ONNX Runtime.

    Raises:
        RequestError: Options or `require-provider` are set for "onnx-reference".
    """
    if target.provider != ONNX_REFERENCE:
        return Generator(bundle, target=target, verify_provider=False)
    if target.options or target.required:
        raise RequestError(
            f"provider {ONNX_REFERENCE!r} has no options and runs every node; leave out --provider-option and "
            "--require-provider"
        )
    return Generator(bundle, graph=ReferenceGraph(load_graphs(bundle), weights_file(bundle).parent))
