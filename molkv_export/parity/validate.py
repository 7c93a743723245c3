"""Comparing a bundle, run by the driver, with the checkpoint it was made from, run by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from molkv_export.checkpoints import Checkpoint, open_checkpoint
from molkv_export.parity.gates import quality_failure, rounding_failure
from molkv_export.parity.greedy import GreedyResult, greedy_agreement
from molkv_export.parity.metrics import Metrics, MetricsAccumulator
from molkv_export.parity.phases import PHASES, Ids, mixed_batch
from molkv_export.parity.records import RecordsResult, records_agreement
from molkv_export.parity.reference import SourceModel
from molkv_export.training.corpus import standard_library
from molkv_runtime.bundle import TOKENIZER
from molkv_runtime.errors import CheckpointError, RequestError
from molkv_runtime.generator import Generator
from molkv_runtime.row_formats import RowDtype

TRAINED = "as trained"
ROUNDED = "records rounded"
QUALITY_PHASE = "one-shot prefill"  # what rounding costs is the same in every phase


class Comparison(msgspec.Struct, frozen=True):
    """One phase against one reference."""

    phase: str
    reference: str  # TRAINED or ROUNDED
    metrics: Metrics
    failure: str  # empty: passed


class Report(msgspec.Struct, frozen=True):
    """The outcome of a validation."""

    bundle: str
    checkpoint: str
    experts_dtype: RowDtype
    text: str  # what was compared
    records: RecordsResult
    comparisons: list[Comparison]
    greedy: GreedyResult
    greedy_failure: str  # empty: passed

    @property
    def failures(self) -> list[str]:
        """Every gate that was not passed, in words."""
        found = [f"records: {self.records.failure}"] if self.records.failure else []
        found += [f"{c.phase} ({c.reference}): {c.failure}" for c in self.comparisons if c.failure]
        return [*found, f"greedy text: {self.greedy_failure}"] if self.greedy_failure else found


@dataclass(frozen=True)
class Scope:
    """How much is compared."""

    sequences: int = 8  # of the model's whole context each
    continuations: int = 20
    new_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("sequences", "continuations", "new_tokens"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}, expected 1 or more")


def validate(
    bundle: Path,
    checkpoint: Path,
    *,
    text: Path | None = None,
    scope: Scope | None = None,
    provider: str = "cpu",
    report_progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare a bundle with its source in every phase of running it.

    Args:
        bundle: Folder of the bundle.
        checkpoint: Folder it was exported from.
        text: UTF-8 text to compare on; default: modules of Python's standard library that `train` holds out.
            A bundle without a tokenizer is compared on random token ids.
        scope: How much is compared.
        provider: Execution provider of the driver.
        report_progress: Told in words what is being done.

    Raises:
        CheckpointError: The checkpoint is not the one that the bundle was made from.
        RequestError: The text is too short.
    """
    scope = scope or Scope()
    generator = Generator(bundle, provider=provider)
    with open_checkpoint(checkpoint) as source:
        _check_source(generator, source)
        new_tokens = min(scope.new_tokens, max(1, generator.config.max_position_embeddings - 1))
        sequences, prompts, description = _texts(generator, text, scope, new_tokens)
        model = SourceModel(source)
        report_progress("records")
        records = records_agreement(generator.store, model)
        comparisons = []
        for phase in PHASES:
            report_progress(phase)
            comparisons += _phase(generator, phase, model, sequences)
        report_progress("mixed batch")
        comparisons.append(_mixed_batch(generator, model, sequences))
        report_progress("greedy text")
        greedy = greedy_agreement(generator, model, prompts, new_tokens)
    return Report(
        bundle=str(bundle),
        checkpoint=str(checkpoint),
        experts_dtype=generator.store.value_dtype,
        text=description,
        records=records,
        comparisons=comparisons,
        greedy=greedy,
        greedy_failure=greedy.first_difference,
    )


def _phase(generator: Generator, phase: str, model: SourceModel, sequences: list[Ids]) -> list[Comparison]:
    quality, rounding = MetricsAccumulator(), MetricsAccumulator()
    for ids in sequences:
        found = PHASES[phase](generator, ids)
        rounding.add(model.logits(ids[: len(found)], generator.store), found, ids[1 : len(found)])
        if phase == QUALITY_PHASE:
            quality.add(model.logits(ids), found, ids[1:])
    comparisons = [_rounding(phase, rounding)]
    if phase == QUALITY_PHASE:
        metrics = quality.result()
        failure = quality_failure(metrics, generator.store.value_dtype)
        comparisons.append(Comparison(phase, TRAINED, metrics, failure))
    return comparisons


def _rounding(phase: str, accumulator: MetricsAccumulator) -> Comparison:
    metrics = accumulator.result()
    return Comparison(phase, ROUNDED, metrics, rounding_failure(metrics))


def _mixed_batch(generator: Generator, model: SourceModel, sequences: list[Ids]) -> Comparison:
    length = len(sequences[0])
    texts = [ids[: max(1, length * part // 4)] for ids, part in zip((sequences * 4)[:4], (1, 4, 2, 3), strict=True)]
    accumulator = MetricsAccumulator()
    for ids, found in zip(texts, mixed_batch(generator, texts), strict=True):
        accumulator.add(model.logits(ids, generator.store), found, ids[1:])
    return _rounding("mixed batch", accumulator)


def _check_source(generator: Generator, checkpoint: Checkpoint) -> None:
    expected = generator.bundle.manifest.provenance.source
    for name, found in checkpoint.sha256().items():
        if expected.get(name) != found:
            raise CheckpointError(
                f"{checkpoint.folder / name}: sha256 is {found[:12]}..., but {generator.bundle.path} was made from "
                f"{expected.get(name, 'none')[:12]}...; give the checkpoint that the bundle was exported from"
            )


def _texts(generator: Generator, text: Path | None, scope: Scope, new_tokens: int) -> tuple[list[Ids], list[Ids], str]:
    """Choose sequences of a whole context, and prompts of different length spread over the text."""
    context = generator.config.max_position_embeddings
    ids, description = _token_ids(generator, text, scope.sequences * context)
    if len(ids) < context:
        raise RequestError(
            f"{text or 'the text'}: has {len(ids)} tokens, expected at least {context} (the model's context)"
        )
    count = min(scope.sequences, len(ids) // context)
    starts = np.linspace(0, len(ids) - context, count).astype(int)
    longest = max(1, context - new_tokens)
    prompt_starts = np.linspace(0, len(ids) - longest, scope.continuations).astype(int)
    lengths = np.linspace(1, longest, scope.continuations).astype(int)
    sequences = [ids[start : start + context] for start in starts]
    prompts = [ids[start : start + length] for start, length in zip(prompt_starts, lengths, strict=True)]
    return sequences, prompts, f"{description}: {count} sequences of {context} tokens"


def _token_ids(generator: Generator, text: Path | None, enough: int) -> tuple[Ids, str]:
    if TOKENIZER not in generator.bundle.manifest.files:
        return np.random.default_rng(0).integers(0, generator.config.vocab_size, enough), "random token ids"
    if text is None:
        content, description = "\n".join(standard_library().validation), "held-out standard library modules"
    else:
        try:
            content, description = text.read_text(encoding="utf-8"), str(text)
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{text}: cannot be read as UTF-8 text ({error})") from error
    return np.array(generator.tokenizer.encode(content).ids, np.int64), description
