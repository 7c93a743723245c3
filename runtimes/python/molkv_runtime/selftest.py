"""The self-test, which compares the results of a bundle on this device with the golden vectors from PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from molkv_bundle import (
    Bundle,
    BundleError,
    Floats,
    GoldenErrors,
    GoldenLimits,
    GoldenText,
    ProviderError,
    read_golden,
    verify,
)
from molkv_runtime.generator import Generator
from molkv_runtime.onnxruntime_session import CPU, Placement, Target
from molkv_runtime.providers import resolve
from molkv_runtime.sampling import Sampling

_BATCH_STEPS = 48  # number of steps for each text; the logits of all steps are in memory together
_PIECE = 48  # positions whose logits are in memory at once; not a multiple of the common windows 32 and 64


class PhaseResult(msgspec.Struct, frozen=True):
    """The differences between the results of one phase and the golden vectors."""

    phase: str
    positions: int
    max_abs_logit: float  # largest difference of the logits that the golden vectors contain
    max_abs_projection: float  # largest difference of the projections of all logits
    relative_l2: float  # relative L2 difference of the projections
    certain_tokens: int  # number of positions with a certain most likely token, see `GoldenErrors`
    right_tokens: int  # number of these positions with the right most likely token
    limits: GoldenLimits

    @property
    def failure(self) -> str:
        """The reason why the phase fails; empty if it passes."""
        limits = {"max_abs_logit": self.limits.max_abs, "max_abs_projection": self.limits.max_abs}
        limits["relative_l2"] = self.limits.relative_l2
        found = [
            f"{what} is {getattr(self, what):.3g}, above {limit:.3g}"
            for what, limit in limits.items()
            if not getattr(self, what) <= limit  # NaN fails this comparison, too
        ]
        if self.right_tokens < self.certain_tokens:
            found.append(
                f"only {self.right_tokens} of {self.certain_tokens} tokens that rounding cannot change are right"
            )
        return f"{self.phase}: {', '.join(found)}" if found else ""


class SelfTest(msgspec.Struct, frozen=True):
    """The result of a self-test."""

    profile: str
    texts: int  # number of golden texts
    phases: list[PhaseResult]
    greedy_tokens: int  # number of tokens in all golden continuations
    greedy_identical: int  # number of right tokens, up to the first wrong token of each continuation
    # The providers that ran the nodes, by the number of positions of a call; 0: any number. The field has another name
    # in JSON, because `placements` is a text in the results of `validate` and `bench`.
    placements: dict[int, list[Placement]] = msgspec.field(name="placements_by_length")
    failures: list[str]  # empty if the test passed


def selftest(
    bundle: Path | str,
    *,
    target: Target = CPU,
    profile: str = "",
    advance: Callable[[int, int], object] = lambda _done, _total: None,
) -> SelfTest:
    """Check the hashes of a bundle's files, then compare prefill, decode and greedy text with its golden vectors.

    Args:
        bundle: The folder of the bundle, or its URL (see `Bundle`).
        target: The provider that runs the graph, and its options.
        profile: The profile of the graph to run; default: the best one for the provider.
        advance: A function that is called after each hashed piece with its size and the size of all files, in bytes.

    Raises:
        BundleError: The bundle is incomplete, or its golden vectors are missing or of another version.
        ProviderError: The provider is not available.
    """
    preset = resolve(target.provider)
    opened = Bundle(bundle, profiles=preset.profiles, profile=profile)
    golden = read_golden(opened)
    texts, limits = golden.texts, golden.limits_beside(preset.max_abs)
    failures = verify(opened, advance).findings
    try:
        generator = Generator(opened, target=target, verify_provider=False)
        phases = [_run_phase(name, run, generator, texts, limits) for name, run in _PHASES.items()]
        phases.append(_run_batch(generator, texts, limits))
    except BundleError as error:
        new = [] if str(error) in failures else [str(error)]
        return SelfTest(opened.profile, len(texts), [], 0, 0, {}, failures + new)
    failures += [phase.failure for phase in phases if phase.failure]
    same, total = 0, sum(len(text.greedy_ids) for text in texts)
    try:
        same = _greedy(generator, texts)
    except (BundleError, ProviderError) as error:  # e.g. logits that are not finite
        failures.append(f"greedy text: {error}")
    # A golden continuation ends before the first token that rounding by the graph's dtypes could change. A provider
    # with `max_abs` above 0 may round more, so its tokens may differ.
    if same < total and not preset.max_abs:
        failures.append(f"greedy text: only {same} of {total} tokens are equal to the tokens of the source model")
    return SelfTest(opened.profile, len(texts), phases, total, same, generator.placements, failures)


def _prefill(generator: Generator, text: GoldenText) -> Iterator[Floats]:
    state, start = generator.sequences(max_length=len(text.input_ids)), 0
    # For each static graph there is one piece: the positions that fill the graph, and one token for the decode graph.
    sizes = [length + 1 for length in reversed(generator.bundle.graph().lengths) if length > 1]
    while start < len(text.input_ids):
        size = sizes.pop(0) if sizes else _PIECE
        yield state.prefill(0, text.input_ids[start : start + size], all_logits=True)
        start += size


def _decode(generator: Generator, text: GoldenText) -> Iterator[Floats]:
    state = generator.sequences(max_length=len(text.input_ids))
    yield state.prefill(0, text.input_ids[:1])
    for position in range(1, len(text.input_ids)):
        yield state.decode(text.input_ids[position : position + 1])


_Phase = Callable[[Generator, GoldenText], Iterator[Floats]]
_PHASES: dict[str, _Phase] = {"prefill in chunks": _prefill, "step-by-step decode": _decode}


def _run_phase(
    name: str, run: _Phase, generator: Generator, texts: list[GoldenText], limits: GoldenLimits
) -> PhaseResult:
    errors = GoldenErrors(generator.config.vocab_size, limits)
    for text in texts:
        start = 0
        for found in run(generator, text):
            errors.add(text, start, found)
            start += len(found)
    return PhaseResult(
        name,
        errors.positions,
        errors.max_abs_logit,
        errors.max_abs_projection,
        errors.relative_l2,
        errors.certain_tokens,
        errors.right_tokens,
        limits,
    )


def _run_batch(generator: Generator, texts: list[GoldenText], limits: GoldenLimits) -> PhaseResult:
    """Decode all texts in one batch: the first 48 positions of each text, or all positions of a shorter text."""
    state = generator.sequences(len(texts), max(len(text.input_ids) for text in texts))
    found = [[state.prefill(index, text.input_ids[:1])] for index, text in enumerate(texts)]
    ends = np.array([min(len(text.input_ids), _BATCH_STEPS) for text in texts])
    while (active := state.lengths < ends).any():
        places = np.minimum(state.lengths, ends - 1).tolist()
        ids = [text.input_ids[at] for text, at in zip(texts, places, strict=True)]
        logits = state.decode(ids, active)
        for index in np.flatnonzero(active):
            found[index].append(logits[index : index + 1].copy())
    by_text = {id(text): rows for text, rows in zip(texts, found, strict=True)}
    return _run_phase("decode in a batch", lambda _, text: iter(by_text[id(text)]), generator, texts, limits)


def _greedy(generator: Generator, texts: list[GoldenText]) -> int:
    """Continue all texts in one batch. Return the number of tokens before the first wrong token of each text."""
    texts = [text for text in texts if len(text.greedy_ids)]
    if not texts:
        return 0
    longest = max(len(text.greedy_ids) for text in texts)
    written: list[list[int]] = [[] for _ in texts]
    prompts = [text.input_ids.tolist() for text in texts]
    for token in generator.stream(prompts, max_new_tokens=longest, sampling=Sampling(), stop_ids=frozenset()):
        written[token.sequence].append(token.id)
    same = 0
    for text, ours in zip(texts, written, strict=True):
        wrong = np.flatnonzero(text.greedy_ids != np.array(ours[: len(text.greedy_ids)]))
        same += int(wrong[0]) if len(wrong) else len(text.greedy_ids)
    return same
