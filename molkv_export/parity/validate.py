"""Comparing a bundle, run by the driver, with its checkpoint in PyTorch, another bundle, or logits from a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch

from molkv_bundle import TOKENIZER, Bundle, RequestError
from molkv_export import __version__
from molkv_export.checkpoints import Checkpoint
from molkv_export.families import open_checkpoint
from molkv_export.inspection import Sizes, sizes_of
from molkv_export.parity.agreement import (
    GreedyResult,
    RecordsResult,
    continuations,
    greedy_agreement,
    records_agreement,
)
from molkv_export.parity.bisect import Bisection, bisect
from molkv_export.parity.compare import (
    EVERY_PHASE,
    QUALITY_PHASE,
    Compared,
    Comparison,
    Histogram,
    Measure,
    Reference,
    compare,
)
from molkv_export.parity.compared_texts import Scope, Texts, choose_texts
from molkv_export.parity.expected import expected_measure
from molkv_export.parity.gates import (
    QualityGate,
    loosest,
    quality_failure,
    quality_gate,
    rounding_failure,
    rounding_limit,
)
from molkv_export.parity.metrics import Metrics, WorstPosition
from molkv_export.parity.runners import DriverRunner, SourceRunner, load_generator, open_bundle
from molkv_export.parity.weights import WeightsResult, weights_agreement
from molkv_export.source.hashes import HashedSource, check_source
from molkv_export.source.model import SourceModel
from molkv_runtime import Generator, Target, describe_placements

TRAINED = "as trained"
ROUNDED = "as stored"
OTHER_BUNDLE = "other bundle"

_TIE = 2e-4  # of float32 arithmetic


class Report(msgspec.Struct, frozen=True):
    """The outcome of a validation."""

    bundle: str
    reference: str  # path of the checkpoint, of the other bundle, or of the file of expected logits
    reference_note: str  # who wrote it and what it holds, of expected logits
    profile: str
    provider: str
    placements: str  # where the nodes ran, in words
    dense_dtype: str
    experts_dtype: str
    text: str  # what was compared
    gate: QualityGate
    rounding_limit: float | None  # of a logit's difference; None: no reference is that exact
    gate_applies: bool  # quality is not judged on random token ids
    comparisons: list[Comparison]
    weights: WeightsResult | None  # None: there is no checkpoint
    records: RecordsResult | None  # likewise
    greedy: list[GreedyResult]  # with ROUNDED, all have to be identical
    kl: Histogram  # of the comparison that quality is judged by
    worst: list[WorstPosition]
    bisection: Bisection | None
    sizes: Sizes
    environment: dict[str, str]

    @property
    def quality(self) -> Comparison:
        """The comparison that quality is judged by."""
        return self.comparisons[0]

    @property
    def failures(self) -> list[str]:
        """Every gate that was not passed, in words; the culprit first."""
        found = [f"bisection: {self.bisection.culprit}"] if self.bisection and self.bisection.culprit else []
        found += [f"weights: {self.weights.failure}"] if self.weights and self.weights.failure else []
        found += [f"records: {self.records.failure}"] if self.records and self.records.failure else []
        found += [f"{c.phase} ({c.reference}): {c.failure}" for c in self.comparisons if c.failure]
        exact = [greedy for greedy in self.greedy if greedy.reference == ROUNDED]
        return found + [f"greedy text: {greedy.first_difference}" for greedy in exact if greedy.first_difference]


def validate(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    against: str | Path | None = None,
    expected: str | Path | None = None,
    text: str | Path | None = None,
    scope: Scope | None = None,
    target: Target = Target(),
    profile: str = "",
    with_bisection: bool = False,
    report_progress: Callable[[str], object] = lambda _: None,
) -> Report:
    """Compare a bundle with its source, with another bundle or with logits that other code wrote.

    Args:
        bundle: Folder of the bundle.
        checkpoint: Folder it was exported from; then every phase of running it is compared.
        against: Folder of another bundle of the same model, instead of a checkpoint.
        expected: safetensors file with token ids and their logits, instead of a checkpoint; see `expected.py`.
        text: UTF-8 text to compare on; default: modules of Python's standard library that `train` holds out.
            A bundle without a tokenizer is compared on random token ids.
        scope: How much is compared; default `Scope()`.
        target: Where the graph is run, as in `runners.load_generator`.
        profile: Which graph of the bundle; default the one that suits the provider best.
        with_bisection: Whether the values inside the layers are compared, too.
        report_progress: Told in words what is being done.

    Raises:
        CheckpointError: The checkpoint is not the one that the bundle was made from, or changes while it is read.
        RequestError: The text is too short, the bundles are of different models, the file of logits does not fit the
            model, or not one of checkpoint, against and expected was given.
    """
    text = None if text is None else Path(text)
    references = {"--checkpoint": checkpoint, "--against": against, "--expected": expected}
    _check_arguments([name for name, path in references.items() if path is not None], text, scope, with_bisection)
    with ExitStack() as stack:
        report_progress("loading")
        opened = open_bundle(Path(bundle), target, profile)
        source = None if checkpoint is None else stack.enter_context(_open_source(Path(checkpoint), opened))
        measure = None if expected is None else expected_measure(Path(expected), opened, target.provider)
        generator = load_generator(opened, target)
        placements = describe_placements(generator.placements)
        if source is not None:
            report_progress("weights and records")
            measure = _source_measure(source, generator, text, scope or Scope(), target.provider)
        elif against is not None:
            other = load_generator(open_bundle(Path(against), target), target)
            measure = _bundle_measure(other, generator, choose_texts(generator, text, scope or Scope()))
        assert measure is not None  # one of the three was given
        compared = compare(generator, measure, report_progress)
        greedy = _greedy(generator, measure, report_progress)
        bisection = None
        if with_bisection and measure.model is not None:
            report_progress("layer by layer")
            del generator  # its weights: the graph is loaded once more
            bisection = bisect(opened, target, measure.model, measure.texts.sequences[0])
    reference = checkpoint or against or expected
    found = _Found(placements, measure, compared, greedy, bisection)
    return _report(opened, str(reference), target.provider, found)


@contextmanager
def _open_source(checkpoint: Path, bundle: Bundle) -> Iterator[Checkpoint]:
    """Open the checkpoint that a bundle was made from, and check in the end that it has not changed meanwhile."""
    with open_checkpoint(checkpoint) as source:
        hashed = HashedSource(source)
        check_source(bundle, source, hashed.hashes)
        yield source
        hashed.check()


class _Found(NamedTuple):
    placements: str
    measure: Measure
    compared: Compared
    greedy: list[GreedyResult]
    bisection: Bisection | None


def _report(bundle: Bundle, reference: str, provider: str, found: _Found) -> Report:
    measure, compared = found.measure, found.compared
    return Report(
        bundle=str(bundle.path),
        reference=reference,
        reference_note=measure.note,
        profile=bundle.profile,
        provider=provider,
        placements=found.placements,
        dense_dtype=bundle.graph().dense_dtype,
        experts_dtype=bundle.manifest.experts.dtype,
        text=measure.texts.description,
        gate=measure.gate,
        rounding_limit=measure.limit,
        gate_applies=measure.texts.is_real,
        comparisons=compared.comparisons,
        weights=measure.weights,
        records=measure.records,
        greedy=found.greedy,
        kl=compared.kl,
        worst=compared.worst,
        bisection=found.bisection,
        sizes=sizes_of(bundle),
        environment=_environment(bundle),
    )


def _check_arguments(given: list[str], text: Path | None, scope: Scope | None, with_bisection: bool) -> None:
    if len(given) != 1:
        raise RequestError(
            f"{' and '.join(given) or 'nothing'} to compare the bundle with, expected one of --checkpoint, --against "
            "and --expected"
        )
    if given != ["--checkpoint"] and with_bisection:
        raise RequestError(f"bisection compares with the source model: give --checkpoint instead of {given[0]}")
    if given == ["--expected"] and (text is not None or scope is not None):
        raise RequestError(
            "--expected brings its own texts, and all of them are compared: leave out --text, --quick, --sequences, "
            "--continuations and --new-tokens"
        )


def _source_measure(
    source: Checkpoint, generator: Generator, text: Path | None, scope: Scope, provider: str
) -> Measure:
    bundle, gate = generator.bundle, quality_gate(generator.bundle)
    texts = choose_texts(generator, text, scope)
    trained = model = SourceModel(source)
    if {bundle.graph().dense_dtype, bundle.graph().window_dtype} != {"float32"} or bundle.config != source.config:
        model = SourceModel(source, bundle)
    limit = rounding_limit(model, generator, texts.sequences, provider)
    judge = _quality_judge(gate if texts.is_real else None)
    # Two runtimes' logits may be so far apart that either of two tokens is right. What rounding costs is no excuse.
    references = [
        Reference(TRAINED, SourceRunner(trained), judge, (QUALITY_PHASE,), _TIE),
        Reference(
            ROUNDED,
            SourceRunner(model, generator.store),
            lambda _, metrics: rounding_failure(metrics, limit),
            EVERY_PHASE,
            2 * limit,
        ),
    ]
    weights = weights_agreement(bundle, model)
    records = records_agreement(generator.store, model, scope.records)
    return Measure(texts, references, gate, limit=limit, model=model, weights=weights, records=records)


def _bundle_measure(other: Generator, generator: Generator, texts: Texts) -> Measure:
    _check_comparable(generator.bundle, other.bundle)
    gate = loosest(quality_gate(generator.bundle), quality_gate(other.bundle))
    judge = _quality_judge(gate if texts.is_real else None)
    return Measure(texts, [Reference(OTHER_BUNDLE, DriverRunner(other), judge, (QUALITY_PHASE,), _TIE)], gate)


def _greedy(generator: Generator, measure: Measure, report_progress: Callable[[str], object]) -> list[GreedyResult]:
    references = [(each, each.greedy_tie) for each in measure.references if each.greedy_tie is not None]
    if not references:
        return []
    report_progress("greedy text")
    written = continuations(generator, measure.texts.prompts, measure.texts.new_tokens)
    return [greedy_agreement(written, each.name, each.runner, tie) for each, tie in references]


def _quality_judge(gate: QualityGate | None) -> Callable[[str, Metrics], str]:
    """Judge by a gate; without one, which is without real text, all that is asked for are numbers."""

    def judge(_: str, metrics: Metrics) -> str:
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
