"""Comparing a bundle, run by the driver, with its checkpoint, run by PyTorch, or with another bundle."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch

from molkv_export import __version__
from molkv_export.checkpoints import Checkpoint, open_checkpoint
from molkv_export.inspect import Sizes, sizes_of
from molkv_export.parity.bisect import Bisection, bisect
from molkv_export.parity.gates import (
    QualityGate,
    loosest,
    quality_failure,
    quality_gate,
    rounding_failure,
    rounding_limit,
)
from molkv_export.parity.greedy import GreedyResult, continuations, greedy_agreement
from molkv_export.parity.metrics import Doubles, Metrics, MetricsAccumulator
from molkv_export.parity.phases import CONTEXT_END, MIXED_BATCH, PHASES, Ids, context_end, mixed_batch
from molkv_export.parity.records import RecordsResult, records_agreement
from molkv_export.parity.reference import SourceModel
from molkv_export.parity.runners import DriverRunner, Runner, SourceRunner, load_generator, open_bundle
from molkv_export.parity.texts import Scope, Texts, choose_texts
from molkv_export.parity.worst import WorstPosition, WorstPositions
from molkv_export.source import HashedSource, check_source
from molkv_runtime.bundle import Bundle
from molkv_runtime.errors import RequestError
from molkv_runtime.generator import Generator
from molkv_runtime.rope import Floats
from molkv_runtime.session import CPU, Target, describe_placements
from molkv_runtime.tokenizer import TOKENIZER

TRAINED = "as trained"
ROUNDED = "as stored"
OTHER_BUNDLE = "other bundle"
QUALITY_PHASE = "one-shot prefill"  # what rounding costs is the same in every phase

_TIE = 2e-4  # of float32 arithmetic
_KL_EDGES = [10.0 ** (quarter / 4) for quarter in range(-64, 9)]


class Comparison(msgspec.Struct, frozen=True):
    """One phase against one reference."""

    phase: str
    reference: str  # TRAINED, ROUNDED or OTHER_BUNDLE
    metrics: Metrics
    failure: str  # empty: passed


class Histogram(msgspec.Struct, frozen=True):
    """How often a value was between two edges; values outside are in the first or last bin."""

    edges: list[float]
    counts: list[int]  # one less than edges


class Report(msgspec.Struct, frozen=True):
    """The outcome of a validation."""

    bundle: str
    reference: str  # path of the checkpoint or the other bundle
    profile: str
    provider: str
    placements: str  # where the nodes ran, in words
    dense_dtype: str
    experts_dtype: str
    text: str  # what was compared
    gate: QualityGate
    rounding_limit: float  # of a logit's difference from ROUNDED
    gate_applies: bool  # quality is judged on real text only
    comparisons: list[Comparison]
    records: RecordsResult | None  # None: compared with another bundle
    greedy: list[GreedyResult]  # with ROUNDED, all have to be identical
    kl: Histogram  # of the comparison that quality is judged by
    worst: list[WorstPosition]
    bisection: Bisection | None
    sizes: Sizes
    environment: dict[str, str]

    @property
    def quality(self) -> Comparison:
        """The comparison that quality is judged by."""
        return next(c for c in self.comparisons if c.reference in (TRAINED, OTHER_BUNDLE))

    @property
    def failures(self) -> list[str]:
        """Every gate that was not passed, in words; the culprit first."""
        found = [f"bisection: {self.bisection.culprit}"] if self.bisection and self.bisection.culprit else []
        found += [f"records: {self.records.failure}"] if self.records and self.records.failure else []
        found += [f"{c.phase} ({c.reference}): {c.failure}" for c in self.comparisons if c.failure]
        exact = [greedy for greedy in self.greedy if greedy.reference == ROUNDED]
        return found + [f"greedy text: {greedy.first_difference}" for greedy in exact if greedy.first_difference]


class Reference(NamedTuple):
    """What a bundle is compared with, and what it must reach."""

    name: str
    runner: Runner
    judge: Callable[[Metrics], str]  # says why it fails; empty: passes
    every_phase: bool  # or only QUALITY_PHASE


def validate(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    against: Path | None = None,
    text: Path | None = None,
    scope: Scope | None = None,
    target: Target = CPU,
    profile: str = "",
    with_bisection: bool = False,
    report_progress: Callable[[str], object] = lambda _: None,
) -> Report:
    """Compare a bundle with its source, or with another bundle, in every phase of running it.

    Args:
        bundle: Folder of the bundle.
        checkpoint: Folder it was exported from.
        against: Folder of another bundle of the same model, instead of a checkpoint.
        text: UTF-8 text to compare on; default: modules of Python's standard library that `train` holds out.
            A bundle without a tokenizer is compared on random token ids.
        scope: How much is compared.
        target: Where the graph is run, as in `runners.load_generator`.
        profile: Which graph of the bundle; default the one that suits the provider best.
        with_bisection: Whether the values inside the layers are compared, too.
        report_progress: Told in words what is being done.

    Raises:
        CheckpointError: The checkpoint is not the one that the bundle was made from, or changes while it is read.
        RequestError: The text is too short, the bundles are of different models, or not one of checkpoint and against
            was given.
    """
    if (checkpoint is None) == (against is None):
        raise RequestError("give either --checkpoint or --against: one thing to compare the bundle with")
    if against is not None and with_bisection:
        raise RequestError("bisection compares with the source model: give --checkpoint instead of --against")
    scope = scope or Scope()
    with ExitStack() as stack:
        report_progress("loading")
        opened = open_bundle(bundle, target, profile)
        source = hashed = None
        if checkpoint is not None:
            source = stack.enter_context(open_checkpoint(checkpoint))
            hashed = HashedSource(source)
            check_source(opened, source, hashed.hashes)
        generator = load_generator(opened, target)
        limit, placements = rounding_limit(opened, target.provider), describe_placements(generator.placements)
        texts = choose_texts(generator, text, scope)
        if source is not None:
            report_progress("records")
            measure = _source_measure(source, generator, texts, scope, limit)
        else:
            assert against is not None
            other = load_generator(open_bundle(against, target), target)
            measure = _bundle_measure(other, generator, texts)
        comparisons, kl, worst = _compare(generator, measure.references, texts, report_progress)
        report_progress("greedy text")
        written = continuations(generator, texts.prompts, texts.new_tokens)
        # Two runtimes' logits may be so far apart that either of two tokens is right. What rounding costs is no excuse.
        ties = {ROUNDED: 2 * limit}
        greedy = [
            greedy_agreement(written, each.name, each.runner, ties.get(each.name, _TIE)) for each in measure.references
        ]
        bisection = None
        if with_bisection and measure.model is not None:
            report_progress("layer by layer")
            del generator  # its weights: the graph is loaded once more
            bisection = bisect(opened, target, measure.model, texts.sequences[0])
        if hashed is not None:
            hashed.check()
    return Report(
        bundle=str(bundle),
        reference=str(checkpoint or against),
        profile=opened.profile,
        provider=target.provider,
        placements=placements,
        dense_dtype=opened.graph().dense_dtype,
        experts_dtype=opened.manifest.store.dtype,
        text=texts.description,
        gate=measure.gate,
        rounding_limit=limit,
        gate_applies=texts.is_real,
        comparisons=comparisons,
        records=measure.records,
        greedy=greedy,
        kl=kl,
        worst=worst,
        bisection=bisection,
        sizes=sizes_of(opened),
        environment=_environment(opened),
    )


class _Measure(NamedTuple):
    """What a bundle is measured by."""

    references: list[Reference]
    gate: QualityGate
    model: SourceModel | None = None  # None: another bundle
    records: RecordsResult | None = None


def _source_measure(source: Checkpoint, generator: Generator, texts: Texts, scope: Scope, limit: float) -> _Measure:
    bundle, gate = generator.bundle, quality_gate(generator.bundle)
    trained = model = SourceModel(source)
    if bundle.graph().dense_dtype != "float32" or bundle.config != source.config:
        model = SourceModel(source, bundle)
    references = [
        Reference(TRAINED, SourceRunner(trained), _quality_judge(gate if texts.is_real else None), False),
        Reference(
            ROUNDED, SourceRunner(model, generator.store), lambda metrics: rounding_failure(metrics, limit), True
        ),
    ]
    return _Measure(references, gate, model, records_agreement(generator.store, model, scope.records))


def _bundle_measure(other: Generator, generator: Generator, texts: Texts) -> _Measure:
    _check_comparable(generator.bundle, other.bundle)
    gate = loosest(quality_gate(generator.bundle), quality_gate(other.bundle))
    judge = _quality_judge(gate if texts.is_real else None)
    return _Measure([Reference(OTHER_BUNDLE, DriverRunner(other), judge, False)], gate)


def _quality_judge(gate: QualityGate | None) -> Callable[[Metrics], str]:
    """Judge by a gate; without one, which is without real text, all that is asked for are numbers."""

    def judge(metrics: Metrics) -> str:
        if gate is None:
            return "" if np.isfinite(metrics.max_abs) else f"max abs is {metrics.max_abs}"
        return quality_failure(metrics, gate)

    return judge


def _environment(bundle: Bundle) -> dict[str, str]:
    packages = (torch, onnx, onnxruntime, np)
    versions = [f"{package.__name__} {package.__version__}" for package in packages]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "here": ", ".join([f"python {platform.python_version()}", f"molkv-export {__version__}", *versions]),
        "exported by": bundle.manifest.provenance.command,
        "exported with": ", ".join(f"{k} {v}" for k, v in bundle.manifest.provenance.tools.items()),
    }


def _compare(
    generator: Generator, references: list[Reference], texts: Texts, report_progress: Callable[[str], object]
) -> tuple[list[Comparison], Histogram, list[WorstPosition]]:
    """Run all texts in all phases."""
    sums = {(phase, r.name): MetricsAccumulator() for r in references for phase in _phases_of(r)}
    worst = WorstPositions()

    def add(phase: str, reference: Reference, ids: Ids, exact: Floats, found: Floats) -> Doubles:
        return sums[phase, reference.name].add(exact[: len(found)], found, ids[1:][: len(found)])

    for index, ids in enumerate(texts.sequences):
        report_progress(f"text {index + 1} of {len(texts.sequences)}")
        exact = {reference.name: reference.runner.logits(ids) for reference in references}
        for phase, run in PHASES.items():
            asked = [reference for reference in references if phase in _phases_of(reference)]
            found = DriverRunner(generator, run).logits(ids) if asked else np.empty(0, np.float32)
            for reference in asked:
                kl = add(phase, reference, ids, exact[reference.name], found)
                if phase == QUALITY_PHASE and not reference.every_phase:
                    worst.add(index, ids, exact[reference.name], found, kl)
    for reference in references:
        if reference.every_phase:
            report_progress(MIXED_BATCH)
            batch = _batch(texts)
            for ids, found in zip(batch, mixed_batch(generator, batch), strict=True):
                add(MIXED_BATCH, reference, ids, reference.runner.logits(ids), found)
            report_progress(CONTEXT_END)
            found = DriverRunner(generator, context_end).logits(texts.whole_context)
            exact_end = reference.runner.logits(texts.whole_context, last=len(found))
            sums[CONTEXT_END, reference.name].add(exact_end, found)
    comparisons = []
    for reference in references:
        for phase in _phases_of(reference):
            metrics = sums[phase, reference.name].result()
            comparisons.append(Comparison(phase, reference.name, metrics, reference.judge(metrics)))
    quality = next(reference for reference in references if not reference.every_phase)
    histogram = _histogram(sums[QUALITY_PHASE, quality.name].kl)
    return comparisons, histogram, worst.result(_decoder(generator, texts))


def _phases_of(reference: Reference) -> list[str]:
    return [*PHASES, MIXED_BATCH, CONTEXT_END] if reference.every_phase else [QUALITY_PHASE]


def _batch(texts: Texts) -> list[Ids]:
    length = len(texts.sequences[0])
    return [
        ids[: max(1, length * part // 4)] for ids, part in zip((texts.sequences * 4)[:4], (1, 4, 2, 3), strict=True)
    ]


def _histogram(kl: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Histogram:
    counts, _ = np.histogram(np.clip(np.nan_to_num(kl, nan=np.inf), _KL_EDGES[0], _KL_EDGES[-1]), _KL_EDGES)
    return Histogram(_KL_EDGES, counts.tolist())


def _decoder(generator: Generator, texts: Texts) -> Callable[[list[int]], str]:
    if not texts.is_real:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: generator.tokenizer.decode(ids, skip_special_tokens=False)


def _check_comparable(bundle: Bundle, other: Bundle) -> None:
    for field in ("vocab_size", "max_position_embeddings"):
        ours, theirs = getattr(bundle.manifest.model, field), getattr(other.manifest.model, field)
        if ours != theirs:
            raise RequestError(
                f"{other.path}: {field} is {theirs}, expected {ours} as in {bundle.path}; give two bundles of one model"
            )
    if other.config.max_position_embeddings < bundle.config.max_position_embeddings:
        raise RequestError(
            f"{other.path}: context_length of its profile {other.profile} is {other.config.max_position_embeddings}, "
            f"expected at least {bundle.config.max_position_embeddings}; compare the other way round"
        )
    tokenizers = [each.manifest.files.get(TOKENIZER) for each in (bundle, other)]
    if tokenizers[0] != tokenizers[1]:
        raise RequestError(
            f"{other.path}: {TOKENIZER} is not that of {bundle.path}, so their token ids mean "
            "different things; give two bundles of one model"
        )
