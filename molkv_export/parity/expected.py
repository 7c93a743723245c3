"""Read logits that the user's own code wrote to a safetensors file (docs/parity.md, "Your own code")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import Bundle, Floats, ModelConfig, RequestError, TensorFile
from molkv_export.golden import window
from molkv_export.parity.compare import EVERY_PHASE, QUALITY_PHASE, Measure, Reference
from molkv_export.parity.compared_texts import Texts
from molkv_export.parity.gates import (
    FILE_GATES,
    OWN_CODE_MAX_ABS,
    QualityGate,
    golden_limit,
    kl_failure,
    loosest,
    quality_failure,
    quality_gate,
    rounding_failure,
    top1_failure,
)
from molkv_export.parity.metrics import Metrics
from molkv_export.parity.runners import CONTEXT_END
from molkv_export.source.model import Ids

EXPECTED = "your own code"

_SHOWN_NAMES = 5
_LEAST_TOP = 5  # the metrics need the five likeliest tokens
_FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS = {"I32": "<i4", "I64": "<i8"}
_ALL_LOGITS = {"input_ids": _INTEGERS, "logits": _FLOATS}
_TOP_LOGITS = {"input_ids": _INTEGERS, "top_ids": _INTEGERS, "top_logits": _FLOATS}


class ExpectedLogits:
    """A file of texts and their logits. It is a `Runner` for these texts only, and reads one text at a time."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        """Open a file and check all its tensors.

        Args:
            path: A safetensors file with input_ids [B, T] and either logits [B, T, V] or top_ids and top_logits
                [B, T, K]. Ids are I32 or I64, logits F32, F16 or BF16.
            config: Configuration of the model, with the context and the window of the compared graph.

        Raises:
            RequestError: The file cannot be read, or its tensors do not fit the model.
        """
        self.path, self._file, self._vocab_size = path, TensorFile(path, RequestError), config.vocab_size
        entries = self._file.entries
        self._fields = _TOP_LOGITS if _TOP_LOGITS.keys() == entries.keys() else _ALL_LOGITS
        if self._fields.keys() != entries.keys():
            raise RequestError(
                f"{path}: holds {_names(entries)}, expected input_ids and logits, or "
                "input_ids, top_ids and top_logits, and nothing else; docs/parity.md has a recipe"
            )
        for name, dtypes in self._fields.items():
            if entries[name].dtype not in dtypes:
                raise RequestError(f"{path}: {name} has dtype {entries[name].dtype}, expected {' or '.join(dtypes)}")
        self.is_partial = "top_ids" in entries
        self.dtype = entries["top_logits" if self.is_partial else "logits"].dtype
        self._check_shapes(config)
        self.ids: Ids = np.stack([self._read("input_ids", text) for text in range(entries["input_ids"].shape[0])])
        self._check_ids("input_ids", self.ids)
        if len(np.unique(self.ids, axis=0)) < len(self.ids):
            raise RequestError(f"{path}: input_ids holds a text twice, expected different texts")
        for text in range(len(self.ids)):
            self._check_text(text)

    @property
    def logits_each(self) -> int:
        """Number of logits that the file holds for each position."""
        return self._file.entries["top_ids" if self.is_partial else "logits"].shape[2]

    def sha256(self) -> str:
        """Return the SHA-256 of the open file."""
        return self._file.sha256()

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Return the stored logits of a text, or of the beginning of a text, float32 [last or T, vocab_size].

        Logits that the file does not hold are -inf.
        """
        text = int((self.ids[:, : len(ids)] == ids).all(axis=1).argmax())
        if not self.is_partial:
            return self._read("logits", text)[: len(ids)][-last:]
        found = np.full((self.ids.shape[1], self._vocab_size), -np.inf, np.float32)
        np.put_along_axis(found, self._read("top_ids", text), self._read("top_logits", text), axis=-1)
        return found[: len(ids)][-last:]

    def _read(self, name: str, text: int) -> npt.NDArray[Any]:
        """Read the part of a tensor that belongs to one text, as int64 or float32."""
        entry = self._file.entries[name]
        stored = self._file.read_rows(name, text, text + 1).view(self._fields[name][entry.dtype])
        if entry.dtype == "BF16":  # the upper half of a float32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.reshape(entry.shape[1:]).astype(np.int64 if self._fields[name] is _INTEGERS else np.float32)

    def _check_shapes(self, config: ModelConfig) -> None:
        shapes = {name: entry.shape for name, entry in self._file.entries.items()}
        ids, context = shapes["input_ids"], config.max_position_embeddings
        if len(ids) != 2 or ids[0] == 0:
            raise RequestError(f"{self.path}: input_ids has shape {list(ids)}, expected [B, T] with at least one text")
        least = min(context, 2 * window(config))
        if not least <= ids[1] <= context:
            why = f"; shorter texts do not test a window of {window(config)}" if config.longest_window else ""
            raise RequestError(
                f"{self.path}: input_ids has texts of {ids[1]} tokens, expected {least} to {context}{why}"
            )
        count, why = config.vocab_size, f"the vocabulary has {config.vocab_size} tokens"
        if self.is_partial:
            count = shapes["top_ids"][-1] if shapes["top_ids"] else 0
            if not min(_LEAST_TOP, config.vocab_size) <= count <= config.vocab_size:
                raise RequestError(
                    f"{self.path}: top_ids has shape {list(shapes['top_ids'])}, expected [B, T, K] with K from "
                    f"{min(_LEAST_TOP, config.vocab_size)} to {config.vocab_size} (vocab_size)"
                )
            why = f"top_ids has {count} ids for each position"
        for name in shapes.keys() - {"input_ids"}:
            if shapes[name] != (*ids, count):
                raise RequestError(
                    f"{self.path}: {name} has shape {list(shapes[name])}, expected {[*ids, count]}, since input_ids "
                    f"has shape {list(ids)}, and {why}"
                )

    def _check_ids(self, name: str, ids: Ids) -> None:
        if not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise RequestError(
                f"{self.path}: {name} holds ids from {ids.min()} to {ids.max()}, expected token ids from 0 to "
                f"{self._vocab_size - 1}"
            )

    def _check_text(self, text: int) -> None:
        name = "top_logits" if self.is_partial else "logits"
        wrong = np.argwhere(~np.isfinite(values := self._read(name, text)))
        if len(wrong):
            position, index = wrong[0]
            raise RequestError(
                f"{self.path}: {name}[{text}, {position}, {index}] is {values[position, index]}, "
                "expected a finite number"
            )
        if self.is_partial:
            self._check_ids("top_ids", ids := self._read("top_ids", text))
            twice = np.flatnonzero((np.diff(np.sort(ids, axis=-1), axis=-1) == 0).any(axis=-1))
            if len(twice):
                raise RequestError(
                    f"{self.path}: top_ids[{text}, {twice[0]}] holds an id twice, expected K different ids"
                )


def expected_measure(path: Path, bundle: Bundle, provider: str) -> Measure:
    """Read a file of logits, and choose the gates for the comparison of a bundle with these logits.

    Raises:
        RequestError: The file cannot be read, or its tensors do not fit the bundle's model.
    """
    file = ExpectedLogits(path, bundle.config)
    count, length = file.ids.shape
    has_end = length == bundle.config.max_position_embeddings
    texts = Texts(
        description=f"{path}: {count} {'text' if count == 1 else 'texts'} of {length} tokens",
        is_real=True,
        sequences=list(file.ids),
        whole_context=file.ids[0] if has_end else file.ids[0, :0],
        prompts=[],
        new_tokens=0,
    )
    gate = loosest(quality_gate(bundle), FILE_GATES[file.dtype])
    limit = golden_limit(bundle, provider) + OWN_CODE_MAX_ABS if _is_exact(bundle, file) else None
    phases = EVERY_PHASE if has_end else tuple(phase for phase in EVERY_PHASE if phase != CONTEXT_END)
    reference = Reference(EXPECTED, file, _judge(gate, limit, file.is_partial), phases, None, file.is_partial)
    return Measure(texts, [reference], gate, _note(file), limit)


def _names(entries: Iterable[str]) -> str:
    """Return the first names of a file's tensors as text, with the number of further tensors."""
    names = sorted(entries)
    more = f" and {len(names) - _SHOWN_NAMES} more tensors" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(names[:_SHOWN_NAMES]) or "no tensors") + more


def _is_exact(bundle: Bundle, file: ExpectedLogits) -> bool:
    """Return whether bundle and file hold float32 only, so that only the arithmetic of the two programs may differ."""
    graph = bundle.graph()
    return {graph.dense_dtype, graph.kv_dtype, graph.window_dtype, bundle.manifest.experts.dtype} == {
        "float32"
    } and file.dtype == "F32"


def _judge(gate: QualityGate, limit: float | None, is_partial: bool) -> Callable[[str, Metrics], str]:
    def judge(phase: str, metrics: Metrics) -> str:
        if limit is not None and (failure := rounding_failure(metrics, limit)):
            return failure
        if phase != QUALITY_PHASE:  # in phases with few positions, top-1 and perplexity depend on single tokens
            return kl_failure(metrics, gate)
        if is_partial:
            return kl_failure(metrics, gate) or top1_failure(metrics, gate)
        return quality_failure(metrics, gate)

    return judge


def _note(file: ExpectedLogits) -> str:
    note = f"logits that your own code wrote, {file.dtype}, sha256 {file.sha256()}"
    if file.is_partial:
        note += (
            f"; the file has {file.logits_each} logits per position: max abs, rel. L2 and KL use these logits only (KL "
            "after renormalization), top-1 and top-5 use the whole vocabulary, and perplexity was not compared"
        )
    return note
