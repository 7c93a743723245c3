"""Run a bundle in every phase and compare its logits with those of references."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from molkv_bundle import TOKENIZER
from molkv_export.parity.agreement import RecordsResult
from molkv_export.parity.compared_texts import Texts
from molkv_export.parity.gates import QualityGate
from molkv_export.parity.metrics import Doubles, Metrics, MetricsAccumulator, WorstPosition, WorstPositions
from molkv_export.parity.runners import CONTEXT_END, MIXED_BATCH, PHASES, DriverRunner, Runner, context_end, mixed_batch
from molkv_export.parity.weights import WeightsResult
from molkv_export.source.model import SourceModel
from molkv_runtime import Generator

QUALITY_PHASE = "one-shot prefill"  # quality is judged in one phase, because rounding has the same effect in all phases
EVERY_PHASE = (*PHASES, MIXED_BATCH, CONTEXT_END)

_KL_EDGES = [10.0 ** (quarter / 4) for quarter in range(-64, 9)]


class Comparison(msgspec.Struct, frozen=True):
    """Comparison of one phase with one reference."""

    phase: str
    reference: str  # the name of a Reference
    metrics: Metrics
    failure: str  # reason of the failure; empty if the phase passed


class Histogram(msgspec.Struct, frozen=True):
    """Number of values between each two neighbouring edges. Values outside all edges count in the first or last bin."""

    edges: list[float]
    counts: list[int]  # one element fewer than `edges`


class Reference(NamedTuple):
    """A reference for a bundle: a runner, and the test that the bundle must pass in the comparison with this runner."""

    name: str
    runner: Runner
    judge: Callable[[str, Metrics], str]  # (phase, metrics) -> reason of a failure, empty if the phase passes
    phases: tuple[str, ...]  # the phases to compare
    greedy_tie: float | None  # two tokens whose logits differ by at most this are equal; None: no greedy text
    is_partial: bool = False  # whether the runner knows only some logits; all others are -inf


class Measure(NamedTuple):
    """Everything that a bundle is compared with: texts, references and gates."""

    texts: Texts
    references: list[Reference]  # the first one is used to judge quality
    gate: QualityGate
    note: str = ""  # description of the references for the report
    limit: float | None = None  # largest allowed difference of a logit, if only float arithmetic may differ
    model: SourceModel | None = None  # None: there is no checkpoint
    weights: WeightsResult | None = None
    records: RecordsResult | None = None


class Compared(NamedTuple):
    """Results of a comparison."""

    comparisons: list[Comparison]
    kl: Histogram  # for the first reference, in QUALITY_PHASE
    worst: list[WorstPosition]  # for the first reference, in QUALITY_PHASE


def compare(generator: Generator, measure: Measure, report_progress: Callable[[str], object]) -> Compared:
    """Run all texts in the phases that each reference lists, and compare the logits."""
    references, texts = measure.references, measure.texts
    sums = {(phase, r.name): MetricsAccumulator(is_partial=r.is_partial) for r in references for phase in r.phases}
    worst = WorstPositions()
    for index, ids in enumerate(texts.sequences):
        report_progress(f"comparing text {index + 1} of {len(texts.sequences)}")
        exact = {reference.name: reference.runner.logits(ids) for reference in references}
        for phase, run in PHASES.items():
            asked = [reference for reference in references if phase in reference.phases]
            found = DriverRunner(generator, run).logits(ids) if asked else np.empty(0, np.float32)
            for reference in asked:
                known = exact[reference.name][: len(found)]
                kl = sums[phase, reference.name].add(known, found, ids[1:][: len(found)])
                if phase == QUALITY_PHASE and reference is references[0]:
                    shown = np.where(np.isneginf(known), known, found) if reference.is_partial else found
                    worst.add(index, ids, known, shown, kl)
    for reference in references:
        if MIXED_BATCH in reference.phases:
            report_progress(f"comparing phase: {MIXED_BATCH}")
            _add_mixed_batch(generator, reference, texts, sums[MIXED_BATCH, reference.name])
        if CONTEXT_END in reference.phases:
            report_progress(f"comparing phase: {CONTEXT_END}")
            found = DriverRunner(generator, context_end).logits(texts.whole_context)
            known = reference.runner.logits(texts.whole_context, last=len(found))
            sums[CONTEXT_END, reference.name].add(known, found)
    comparisons = []
    for reference in references:
        for phase in reference.phases:
            metrics = sums[phase, reference.name].result()
            comparisons.append(Comparison(phase, reference.name, metrics, reference.judge(phase, metrics)))
    histogram = _histogram(sums[QUALITY_PHASE, references[0].name].kl)
    return Compared(comparisons, histogram, worst.result(_decoder(generator, texts)))


def _add_mixed_batch(generator: Generator, reference: Reference, texts: Texts, total: MetricsAccumulator) -> None:
    length = len(texts.sequences[0])
    batch = [
        ids[: max(1, length * part // 4)] for ids, part in zip((texts.sequences * 4)[:4], (1, 4, 2, 3), strict=True)
    ]
    for ids, found in zip(batch, mixed_batch(generator, batch), strict=True):
        total.add(reference.runner.logits(ids), found, ids[1:])


def _histogram(kl: Doubles) -> Histogram:
    counts, _ = np.histogram(np.clip(np.nan_to_num(kl, nan=np.inf), _KL_EDGES[0], _KL_EDGES[-1]), _KL_EDGES)
    return Histogram(_KL_EDGES, counts.tolist())


def _decoder(generator: Generator, texts: Texts) -> Callable[[list[int]], str]:
    if not texts.is_real or TOKENIZER not in generator.bundle.manifest.files:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: generator.tokenizer.decode(ids, skip_special_tokens=False)
