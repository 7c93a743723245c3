"""Does this bundle, in this driver, on this device, compute what the source model computed in PyTorch?"""

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
from molkv_runtime.providers import resolve
from molkv_runtime.sampling import Sampling
from molkv_runtime.session import CPU, Placement, Target

_BATCH_STEPS = 48  # of a text; their logits are in memory together
_PIECE = 48  # positions whose logits are in memory at once; no multiple of usual windows


class PhaseResult(msgspec.Struct, frozen=True):
    """How far one phase is from the golden vectors."""

    phase: str
    positions: int
    max_abs_logit: float  # over the logits that are kept
    max_abs_projection: float  # over the projections of all logits
    relative_l2: float  # of the projections
    certain_tokens: int  # positions whose two best golden logits are further apart than rounding explains
    right_tokens: int  # of them, those with the same likeliest token
    limits: GoldenLimits

    @property
    def failure(self) -> str:
        """Why it fails; empty if it passes."""
        limits = {"max_abs_logit": self.limits.max_abs, "max_abs_projection": self.limits.max_abs}
        limits["relative_l2"] = self.limits.relative_l2
        found = [
            f"{what} is {getattr(self, what):.3g}, above {limit:.3g}"
            for what, limit in limits.items()
            if not getattr(self, what) <= limit  # written so that NaN fails
        ]
        if self.right_tokens < self.certain_tokens:
            found.append(f"{self.right_tokens} of {self.certain_tokens} certain tokens are right")
        return f"{self.phase}: {', '.join(found)}" if found else ""


class SelfTest(msgspec.Struct, frozen=True):
    """The outcome of a self-test."""

    profile: str
    texts: int
    phases: list[PhaseResult]
    greedy_tokens: int  # in all continuations
    greedy_identical: int  # of them, up to the first that is different in each continuation
    placements: dict[int, list[Placement]]  # where the nodes ran, by the length of a call; 0 is any
    failures: list[str]  # empty: passed


def selftest(
    bundle: Path | str,
    *,
    target: Target = CPU,
    profile: str = "",
    advance: Callable[[int, int], object] = lambda _done, _total: None,
) -> SelfTest:
    """Compare a bundle with its golden vectors: every byte by hash, then prefill, decode and greedy text in batches.

    Args:
        bundle: Its folder.
        target: Where the graph is to run.
        profile: Which of the bundle's graphs; default the one that suits the provider best.
        advance: Told how many bytes were hashed since the last time, and how many there are.

    Raises:
        BundleError: The bundle is incomplete, carries no golden vectors, or ones of another version.
        ProviderError: The provider is not there.
    """
    preset = resolve(target.provider)
    opened = Bundle(bundle, profiles=preset.profiles, profile=profile)
    golden = read_golden(opened)
    texts, limits = golden.texts, golden.limits_beside(preset.max_abs)
    failures = verify(opened.path, advance).findings
    try:
        generator = Generator(opened, target=target, verify_provider=False)
        phases = [_run_phase(name, run, generator, texts, limits) for name, run in _PHASES.items()]
        phases.append(_run_batch(generator, texts, limits))
    except BundleError as error:
        return SelfTest(opened.profile, len(texts), [], 0, 0, {}, [*failures, str(error)])
    failures += [phase.failure for phase in phases if phase.failure]
    same, total = 0, sum(len(text.greedy_ids) for text in texts)
    try:
        same = _greedy(generator, texts)
    except (BundleError, ProviderError) as error:  # logits of which no token can be chosen
        failures.append(f"greedy text: {error}")
    # The texts end where rounding of the bundle's own kind could decide; a provider's own may be coarser.
    if same < total and not preset.max_abs:
        failures.append(f"greedy text: {same} of {total} tokens are the source model's")
    return SelfTest(opened.profile, len(texts), phases, total, same, generator.placements, failures)


def _prefill(generator: Generator, text: GoldenText) -> Iterator[Floats]:
    state, start = generator.sequences(max_length=len(text.input_ids)), 0
    # Static graphs first, each with a piece that it takes whole, and a token that is a step.
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
    """Decode all texts together, from their first token to the end of each."""
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
    """Continue all texts together; return the number of tokens that are right, up to the first wrong one of each."""
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
