"""Compare a bundle with its checkpoint in PyTorch, with another bundle, or with logits from a file."""

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

from molkv_bundle import TOKENIZER, ArgumentError, Bundle, RequestError
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

_TIE = 2e-4  # tokens whose logits differ by at most this count as equal, since float32 arithmetic may swap them


class Report(msgspec.Struct, frozen=True):
    """Result of a validation."""

    bundle: str
    reference: str  # path of the checkpoint, of the other bundle or of the file of logits
    reference_note: str  # for a file of logits: a description of its content
    profile: str
    provider: str
    placements: str  # number of nodes on each provider, in words
    dense_dtype: str
    experts_dtype: str
    text: str  # description of the compared texts
    gate: QualityGate
    rounding_limit: float | None  # largest allowed difference of a logit; None: only the quality gate applies
    gate_applies: bool  # False for random token ids, on which quality is not judged
    comparisons: list[Comparison]
    weights: WeightsResult | None  # None without a checkpoint
    records: RecordsResult | None  # None without a checkpoint
    greedy: list[GreedyResult]  # for reference ROUNDED, all texts have to be identical
    kl: Histogram  # for the comparison that judges quality
    worst: list[WorstPosition]
    bisection: Bisection | None
    sizes: Sizes
    environment: dict[str, str]

    @property
    def quality(self) -> Comparison:
        """The comparison that judges quality."""
        return self.comparisons[0]

    @property
    def failures(self) -> list[str]:
        """Descriptions of all failed gates; the result of bisection comes first."""
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
    """Compare a bundle with its checkpoint, with another bundle or with logits that other code wrote.

    Exactly one of `checkpoint`, `against` and `expected` must be given.

    Args:
        bundle: Folder of the bundle, or its URL (see `Bundle`).
        checkpoint: Folder or URL of the checkpoint that the bundle was exported from.
        against: Another bundle of the same model.
        expected: safetensors file with token ids and their logits; see `expected.py`.
        text: File of UTF-8 text to run. The default is the modules of Python's standard library that `train` holds out.
            For a bundle without a tokenizer, the default is random token ids.
        scope: Amount of text and records; default `Scope()`.
        target: Provider and options that run the graph, as in `runners.load_generator`.
        profile: Profile of the bundle; by default, the best profile for the provider.
        with_bisection: Whether to compare the values inside the layers, too.
        report_progress: Called with a description of each step.

    Raises:
        CheckpointError: The checkpoint is not the source of the bundle, or changes while it is read.
        RequestError: The text is too short, the bundles are of different models, or the file of logits does not fit
            the model.
        ArgumentError: The number of references is not one, or an option does not apply to the given reference.
    """
    text = None if text is None else Path(text)
    references = {"--checkpoint": checkpoint, "--against": against, "--expected": expected}
    _check_arguments([name for name, path in references.items() if path is not None], text, scope, with_bisection)
    with ExitStack() as stack:
        report_progress("loading")
        opened = open_bundle(bundle, target, profile)
        source = None if checkpoint is None else stack.enter_context(_open_source(checkpoint, opened))
        measure = None if expected is None else expected_measure(Path(expected), opened, target.provider)
        generator = load_generator(opened, target)
        placements = describe_placements(generator.placements)
        if source is not None:
            report_progress("comparing weights and records")
            measure = _source_measure(source, generator, text, scope or Scope(), target.provider)
        elif against is not None:
            other = load_generator(open_bundle(against, target), target)
            measure = _bundle_measure(other, generator, choose_texts(generator, text, scope or Scope()))
        assert measure is not None  # one of the three was given
        compared = compare(generator, measure, report_progress)
        greedy = _greedy(generator, measure, report_progress)
        bisection = None
        if with_bisection and measure.model is not None:
            report_progress("comparing layer by layer")
            del generator  # frees the weights, because bisection loads the graph again
            bisection = bisect(opened, target, measure.model, measure.texts.sequences[0])
    found = _Found(placements, measure, compared, greedy, bisection)
    return _report(opened, str(checkpoint or against or expected), target.provider, found)


@contextmanager
def _open_source(checkpoint: str | Path, bundle: Bundle) -> Iterator[Checkpoint]:
    """Open the checkpoint that a bundle was made from; on exit, check that the checkpoint has not changed."""
    with open_checkpoint(checkpoint) as source:
        hashed = HashedSource(source, source.sha256())
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
        bundle=bundle.where,
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
        wanted = "exactly one of --checkpoint, --against and --expected"
        raise ArgumentError("checkpoint", " and ".join(given) or "no reference", wanted)
    if given != ["--checkpoint"] and with_bisection:
        raise ArgumentError("with_bisection", given[0], "--checkpoint: bisection needs the source model")
    if given == ["--expected"]:
        for name, value in (("text", text), ("scope", scope)):
            if value is not None:
                raise ArgumentError(name, "with --expected", "without it: the file of --expected has its own texts")


def _source_measure(
    source: Checkpoint, generator: Generator, text: Path | None, scope: Scope, provider: str
) -> Measure:
    bundle, gate = generator.bundle, quality_gate(generator.bundle)
    texts = choose_texts(generator, text, scope)
    trained = model = SourceModel(source)
    graph = bundle.graph()
    is_restricted = graph.is_static and bundle.config != source.config  # the context alone does not change the model
    if {graph.dense_dtype, graph.window_dtype} != {"float32"} or is_restricted:
        model = SourceModel(source, bundle)
    limit = rounding_limit(model, generator, texts.sequences, provider)
    judge = _quality_judge(gate if texts.is_real else None)
    # For reference ROUNDED, two tokens count as equal if logits within the limit allow both choices. For reference
    # TRAINED, two tokens count as equal only if float32 arithmetic may swap them. So a token that was changed by the
    # rounding of weights or records counts as different.
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
    report_progress("comparing greedy text")
    written = continuations(generator, measure.texts.prompts, measure.texts.new_tokens)
    return [greedy_agreement(written, each.name, each.runner, tie) for each, tie in references]


def _quality_judge(gate: QualityGate | None) -> Callable[[str, Metrics], str]:
    """Return a function that judges metrics by a gate. Without a gate (no real text), logits must only be finite."""

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
                f"{other.where}: {field} is {theirs}, expected {ours} as in {bundle.where}; pass two bundles of the "
                "same model"
            )
    if other.config.max_position_embeddings < bundle.config.max_position_embeddings:
        raise RequestError(
            f"{other.where}: context length of profile {other.profile} is {other.config.max_position_embeddings}, "
            f"expected at least {bundle.config.max_position_embeddings}; exchange the two bundles"
        )
    tokenizers = [each.manifest.files.get(TOKENIZER) for each in (bundle, other)]
    if tokenizers[0] != tokenizers[1]:
        raise RequestError(
            f"{other.where}: {TOKENIZER} differs from that of {bundle.where}, so token ids have "
            "different meanings; pass two bundles of the same model"
        )
