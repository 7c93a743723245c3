"""Make golden vectors: results of the source model in PyTorch for a few texts. `molkv_bundle.golden` reads them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save
from torch import Tensor

from molkv_bundle import (
    LIMITS,
    PROJECTIONS,
    TOKENIZER,
    TOP,
    VERSION,
    VERSION_KEY,
    Bundle,
    BundleError,
    CheckpointError,
    GoldenErrors,
    GoldenLimits,
    GoldenText,
    ModelConfig,
    Projection,
)
from molkv_export.checkpoints import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.source.arithmetic import DRAWS, limits_of, rough_arithmetic
from molkv_export.source.model import Ids, SourceModel
from molkv_export.source.streamed import source_bytes
from molkv_runtime import ExpertStore, Store, encode, open_tokenizer

_PROMPTS = (
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return",
    "The store keeps one record for every token, so that a step has to read only what",
    '{"temperature": 21.5, "unit": "°C", "samples": [3, 1, 4, 1, 5, 9], "comment": ',
    "Grüße aus Zürich — 東京から、そして Москва 🙂: ",
)
_PROMPT_TOKENS = 40
_NEW_TOKENS = 16
_LONGEST = 4096  # largest number of positions in a text; the file has 164 bytes for each position
_LARGE_VOCABULARY = 2**17  # number of token ids


def write_golden(
    checkpoint: Checkpoint, bundle: Bundle, open_store: Callable[[Bundle], ExpertStore] = ExpertStore
) -> None:
    """Write the golden vectors into the folder of a bundle that has all other files except the manifest.

    The expected logits are those of the source model, computed in float64, with weights and records rounded as in the
    bundle. If a record of the store is wrong, the source's own record is used, so that the self-test fails. The limits
    for a driver's errors are measured: the model is run again with the rounding errors that a correct driver may make.
    """
    graph, model = bundle.graph(), SourceModel(checkpoint, bundle)
    with open_store(bundle) as store:
        chosen = _texts(bundle.config, bundle.path, graph.lengths)
        texts = _golden_texts(model, store, [ids for ids, _ in chosen], checkpoint.folder)
        limits = _limits(model, store, bundle, texts)
        greedy = _continue(model, store, chosen, tie=4 * limits.max_abs)
    texts = [text._replace(greedy_ids=ids) for text, ids in zip(texts, greedy, strict=True)]
    tensors = {
        f"texts.{index}.{field}": np.ascontiguousarray(array)
        for index, text in enumerate(texts)
        for field, array in text._asdict().items()
    }
    tensors[LIMITS] = np.array(msgspec.structs.astuple(limits), np.float32)
    (bundle.path / graph.golden).write_bytes(save(tensors, {VERSION_KEY: VERSION}))


def _rows(vocab_size: int) -> int:
    """Return the number of positions whose logits are computed at a time.

    A large LM head takes about as long for 32 positions as for 4, since it is read from RAM once.
    """
    return 4 if vocab_size < _LARGE_VOCABULARY else 32


def golden_ram(checkpoint: Checkpoint) -> int:
    """Estimate the RAM in bytes for making golden vectors."""
    networks: Counter[str] = Counter()  # parameters by layer; only one layer's networks are in RAM at a time
    dense: dict[str, tuple[int, ...]] = {}
    for name in checkpoint.parameters:
        layer, is_expert, _ = name.partition(".experts.")
        if not is_expert and name != EMBEDDING:
            dense[name] = checkpoint.shape(name)
        elif is_expert and checkpoint.form == "training":
            networks[layer] += math.prod(checkpoint.shape(name))
    dense[LM_HEAD] = dense.get(LM_HEAD, checkpoint.shape(EMBEDDING))
    vocab_size = checkpoint.config.vocab_size
    logits = (24 * _rows(vocab_size) + 100) * vocab_size
    return source_bytes(dense) + 4 * max(networks.values(), default=0) + logits


def calibration_texts(config: ModelConfig, folder: Path) -> list[Ids]:
    """Return the texts for the calibration of scales, encoded by the tokenizer in the folder if there is one."""
    return [ids for ids, _ in _texts(config, folder)]


def _texts(config: ModelConfig, folder: Path, lengths: Sequence[int] = ()) -> list[tuple[Ids, int]]:
    """Return texts, each with the number of tokens to generate after it.

    The first texts are beginnings of sentences; without a tokenizer, they are random ids. The last text is a long one
    of random ids, without a continuation. It is longer than two expert windows, and longer than a sliding window, so
    that a driver fails if it handles the end of a window wrongly. It is also long enough for at least one call of each
    static graph. The length of this text is at most the context length, and at most 4,096 tokens.
    """
    context = config.max_position_embeddings
    random = np.random.default_rng(0)
    longest = max(2, min(_PROMPT_TOKENS, context - _NEW_TOKENS))
    if (path := folder / TOKENIZER).exists():
        tokenizer = open_tokenizer(path.read_bytes(), path, BundleError)
        prompts = [np.array(ids[:longest], np.int64) for ids in encode(tokenizer, _PROMPTS, path, BundleError)]
    else:
        prompts = [random.integers(0, config.vocab_size, longest - index) for index in range(min(4, longest - 1))]
    beyond_windows = max(2 * max(2, config.expert_window), config.longest_window) + 64
    long_enough = max(128, beyond_windows, sum(length + 1 for length in lengths) + 2)
    long = random.integers(0, config.vocab_size, min(context, _LONGEST, long_enough))
    texts = [(ids, min(_NEW_TOKENS, context - len(ids) + 1)) for ids in prompts if 0 < len(ids) <= context]
    return [*texts, (long, 0)]


def _batches(model: SourceModel, texts: Sequence[Ids]) -> list[list[int]]:
    """Return the indices of texts that are computed together.

    If the model loads its weights for each call, these are the short texts; long ones would take too much RAM together.
    """
    if not model.is_streamed:
        return [[index] for index in range(len(texts))]
    short = [index for index, ids in enumerate(texts) if len(ids) <= _PROMPT_TOKENS + _NEW_TOKENS]
    alone = [[index] for index in range(len(texts)) if index not in short]
    return [short, *alone] if short else alone


def _golden_texts(model: SourceModel, store: Store, texts: list[Ids], source: Path) -> list[GoldenText]:
    """Compute the expected results for texts, without their continuations."""
    found: dict[int, GoldenText] = {}
    for batch in _batches(model, texts):
        each = model.hidden([texts[index] for index in batch], store, in_float64=True)
        for index, hidden in zip(batch, each, strict=True):
            found[index] = _golden_text(model, hidden, texts[index], source)
    return [found[index] for index in range(len(texts))]


def _golden_text(model: SourceModel, hidden: Tensor, ids: Ids, source: Path) -> GoldenText:
    vocab_size = model.config.vocab_size
    projection, count = Projection(vocab_size), min(TOP, vocab_size)
    # Allocated in advance: a small array between large temporary arrays would prevent the release of their memory.
    top, projected = np.empty((len(ids), count), np.int32), np.empty((len(ids), PROJECTIONS), np.float32)
    top_logits, start = np.empty((len(ids), count), np.float32), 0
    for logits in model.head(hidden, _rows(vocab_size), in_float64=True):
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"{source}: the model computes logits that float32 cannot hold, expected finite numbers; its "
                "weights are too large for an export"
            )
        rows = slice(start, start := start + len(logits))
        top[rows] = found = top_ids(logits, count)
        top_logits[rows] = np.take_along_axis(logits, found, axis=-1)
        projected[rows] = projection.of(logits)
    return GoldenText(ids.astype(np.int32), top, top_logits, projected, np.empty(0, np.int32))


def _limits(model: SourceModel, store: Store, bundle: Bundle, texts: list[GoldenText]) -> GoldenLimits:
    """Run the texts several times with the rounding errors that the bundle's format allows; return the limits."""
    found: list[tuple[float, float]] = []
    every, rows = [text.input_ids.astype(np.int64) for text in texts], _rows(model.config.vocab_size)
    for draw in range(DRAWS):
        errors = GoldenErrors(model.config.vocab_size, GoldenLimits(math.inf, math.inf))
        with rough_arithmetic(model.model, bundle, draw):
            for batch in _batches(model, every):
                for index, hidden in zip(batch, model.hidden([every[i] for i in batch], store), strict=True):
                    start = 0
                    for logits in model.head(hidden, rows):
                        errors.add(texts[index], start, logits)
                        start += len(logits)
        found.append((max(errors.max_abs_logit, errors.max_abs_projection), errors.relative_l2))
    return limits_of(*np.max(found, axis=0).tolist())


def _continue(
    model: SourceModel, store: Store, chosen: list[tuple[Ids, int]], tie: float
) -> list[npt.NDArray[np.int32]]:
    """Continue texts greedily, each by its number of tokens; return the new tokens of each text.

    A text stops before a token whose logit is at most `tie` above the second largest logit, because rounding errors
    could change the choice of such a token.
    """
    found = [np.empty(0, np.int64) for _ in chosen]
    for batch in _batches(model, [ids for ids, _ in chosen]):
        going = [index for index in batch if chosen[index][1]]
        while going:
            each = model.hidden([np.concatenate([chosen[index][0], found[index]]) for index in going], store)
            for index, hidden in zip(list(going), each, strict=True):
                logits = next(model.head(hidden[-1:], 1))[0]
                first, *others = top_ids(logits[None], 2)[0]
                if others and logits[first] - logits[others[0]] <= tie:
                    going.remove(index)
                    continue
                found[index] = np.append(found[index], first)
                if len(found[index]) == chosen[index][1]:
                    going.remove(index)
    return [ids.astype(np.int32) for ids in found]


def window(config: ModelConfig) -> int:
    """Return the length of the longest window, or 2 if it is shorter or missing. Pieces of texts have this length."""
    return max(2, config.longest_window)


def top_ids(logits: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Return the ids [n, count] of the largest logits of [n, vocab_size], the largest first."""
    count = min(count, logits.shape[-1])
    found = np.argpartition(-logits, count - 1, axis=-1)[:, :count]
    order = np.argsort(-np.take_along_axis(logits, found, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(found, order, axis=-1)
