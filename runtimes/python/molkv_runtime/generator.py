"""The driver's main class, `Generator`, which generates text with a bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer

from molkv_bundle import TOKENIZER, Access, Bundle, BundleError, Floats, Ids, ModelConfig, ProviderError, RequestError
from molkv_runtime.calls import DenseGraph, Graph
from molkv_runtime.checks import InOneProcess, inside_vocabulary, list_of, token_ids, whole_number
from molkv_runtime.onnxruntime_session import CPU, Placement, Target
from molkv_runtime.probe import probe
from molkv_runtime.providers import resolve
from molkv_runtime.sampling import Sampling
from molkv_runtime.sequences import Sequences
from molkv_runtime.store import ExpertStore, Store
from molkv_runtime.tokenizer import TextStream, bundle_tokenizer, encode

_LOG = logging.getLogger(__name__)


class Token(NamedTuple):
    """One generated token."""

    sequence: int  # index of the prompt that the token continues
    id: int
    finish: Literal["stop", "length"] | None  # the reason why the sequence ends here; None: it continues


class Generator(InOneProcess):
    """A bundle that is loaded and ready to generate text.

    Several threads may use one Generator at the same time. Each process must open the bundle itself.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        target: Target | str = CPU,
        profile: str = "",
        store_access: Access = "pread",
        verify_checksums: bool = True,
        verify_provider: bool = True,
        graph: Graph | None = None,
        store: Store | None = None,
    ) -> None:
        """Load a bundle's graph and open its store.

        Args:
            bundle: An open bundle, or the folder of a bundle.
            target: The provider that runs the graph, with the provider's options; or only the name of a preset in
                `providers.PRESETS`.
            profile: The profile of the graph to run; default: the best profile for the provider. The argument has no
                effect if `bundle` is an open `Bundle`, which already has a profile.
            store_access: How to read records: "pread" or "mmap", see `ExpertStore`.
            verify_checksums: Whether to check the checksum of each record when it is read.
            verify_provider: Whether to compare a provider other than cpu with the golden vectors before it is used.
            graph: The implementation of the dense graph; default: ONNX Runtime sessions for `target`.
            store: The source of records; default: the bundle's store, with `store_access` and `verify_checksums`.

        Raises:
            BundleError: The bundle is incomplete or damaged, or has no graph for the provider.
            ProviderError: The provider is not available, leaves nodes to other providers although `target.required`
                is set, or computes wrong numbers.
        """
        super().__init__()
        target = Target(target) if isinstance(target, str) else target
        if not isinstance(bundle, Bundle):
            bundle = Bundle(bundle, profiles=resolve(target.provider).profiles, profile=profile)
        self.bundle = bundle
        self.config: ModelConfig = self.bundle.config
        self.store: Store = store or ExpertStore(self.bundle, access=store_access, verify_checksums=verify_checksums)
        self.graph: Graph = graph or DenseGraph(self.bundle, target)
        self.default_sampling = Sampling(**msgspec.structs.asdict(self.bundle.manifest.generation.sampling))
        """The sampling parameters of the bundle, which apply unless a caller gives others."""
        self._tokenizer: Tokenizer | None = None
        if graph is None and target.provider != "cpu" and verify_provider:
            probe(self.bundle, lambda length: self.sequences(max_length=length), target.provider)

    @property
    def placements(self) -> dict[int, list[Placement]]:
        """The providers of the nodes, by the number of positions of a call (0: any); empty if `graph` was given."""
        return self.graph.placements if isinstance(self.graph, DenseGraph) else {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, which is loaded at the first use of this property."""
        if self._tokenizer is None:
            self._tokenizer = bundle_tokenizer(self.bundle)
        return self._tokenizer

    def sequences(
        self, batch_size: int = 1, max_length: int | None = None, prefill_chunk: int | None = None
    ) -> Sequences:
        """Return the state of a batch of new sequences, for use step by step. For the arguments see `Sequences`."""
        return Sequences(
            self.config,
            self.graph,
            self.store,
            kv_dtype=self.bundle.graph().kv_dtype,
            window_dtype=self.bundle.graph().window_dtype,
            lengths=self.bundle.graph().lengths,
            batch_size=batch_size,
            max_length=max_length,
            prefill_chunk=prefill_chunk,
        )

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop_ids: frozenset[int] | None = None,
    ) -> Iterator[Token]:
        """Continue a batch of prompts, which may have different lengths. A step adds one token to each sequence.

        Args:
            prompts: A list of token ids for each prompt.
            max_new_tokens: Largest number of tokens to add to each prompt. A stop token or the end of the model's
                context ends a sequence earlier.
            sampling: The sampling parameters; default: `default_sampling`.
            stop_ids: Token ids that end a sequence; default: the bundle's end-of-text tokens.

        Returns:
            An iterator over the new tokens of all sequences.

        Raises:
            RequestError: A prompt is empty or too long, or a prompt or logit_bias has an id outside the vocabulary.
        """
        self.check_process()
        whole_number("max_new_tokens", max_new_tokens, 1)
        if not isinstance(sampling, Sampling | None):
            raise RequestError(f"sampling: found a {type(sampling).__name__}, expected a Sampling")
        ids = [token_ids("a prompt", prompt) for prompt in list_of("prompts", "prompts", prompts)]
        context = self.config.max_position_embeddings
        for number, prompt in enumerate(ids, start=1):
            if not 0 < len(prompt) <= context:
                which = "the prompt" if len(ids) == 1 else f"prompt {number} of {len(ids)}"
                raise RequestError(f"{which} has {len(prompt)} tokens, expected 1 to {context} (the model's context)")
            self.store.check_ids(prompt)
        stops = frozenset(self.bundle.manifest.generation.eos_token_ids)
        if stop_ids is not None:
            stops = frozenset(token_ids("stop_ids", list(stop_ids) if isinstance(stop_ids, Set) else stop_ids).tolist())
        sampling = sampling or self.default_sampling
        inside_vocabulary("logit_bias", np.array(list(sampling.logit_bias), np.int64), self.config.vocab_size)
        longest = max(map(len, ids))
        state = self.sequences(len(ids), min(context, longest + max_new_tokens))
        return self._steps(state, ids, max_new_tokens, sampling, stops)

    def _steps(
        self,
        state: Sequences,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        sampling: Sampling,
        stops: frozenset[int],
    ) -> Iterator[Token]:
        # The token ids of each sequence. The KV cache does not contain the last chosen token yet.
        texts = np.zeros((len(prompts), state.max_length + 1), np.int64)
        for index, prompt in enumerate(prompts):
            texts[index, : len(prompt)] = prompt
        before = time.perf_counter()
        logits = np.concatenate([state.prefill(index, prompt) for index, prompt in enumerate(prompts)])
        _log_speed("prefill", sum(map(len, prompts)), time.perf_counter() - before)
        decoded, seconds = 0, 0.0  # without the caller's time between two tokens
        active = np.ones(len(prompts), bool)
        tokens = np.zeros(len(prompts), np.int64)
        for count in range(1, max_new_tokens + 1):
            for index in np.flatnonzero(active).tolist():
                length, start = int(state.lengths[index]), len(prompts[index])
                text = texts[index, :length]
                tokens[index] = _choose(sampling, logits[index], text[:start], text[start:], index)
                texts[index, length] = tokens[index]
                full = count == max_new_tokens or state.lengths[index] >= state.max_length
                finish: Literal["stop", "length"] | None = "length" if full else None
                if int(tokens[index]) in stops:
                    finish = "stop"
                active[index] = finish is None
                yield Token(index, int(tokens[index]), finish)
            if not active.any():
                if decoded:
                    _log_speed("decode", decoded, seconds)
                return
            before = time.perf_counter()
            logits = state.decode(tokens, active)
            seconds += time.perf_counter() - before
            decoded += int(active.sum())

    def stream_text(
        self, prompts: Sequence[str], *, max_new_tokens: int = 128, sampling: Sampling | None = None
    ) -> Iterator[tuple[int, str]]:
        """Continue a batch of texts.

        Returns:
            An iterator over (index of the prompt, piece of text). A piece has only complete characters. The pieces do
            not contain the prompt, special tokens, or the token that ends a text.

        Raises:
            RequestError: A prompt is empty or too long.
            BundleError: The bundle has no tokenizer.
        """
        texts = list_of("texts", "prompts", prompts)
        for prompt in texts:
            if not isinstance(prompt, str):
                kind = type(prompt).__name__
                raise RequestError(f"prompts: found an item of type {kind}, expected str; use `stream` for token ids")
            if not prompt.isascii() and prompt.encode(errors="ignore").decode() != prompt:
                raise RequestError(f"the prompt {prompt[:20]!r} contains bytes that are not text, expected UTF-8")
        ids = encode(self.tokenizer, texts, self.bundle.path / TOKENIZER, BundleError)
        tokens = self.stream(ids, max_new_tokens=max_new_tokens, sampling=sampling)
        return _pieces(tokens, [TextStream(self.tokenizer, prompt) for prompt in ids])

    def text(self, prompt: str, *, max_new_tokens: int = 128, sampling: Sampling | None = None) -> Iterator[str]:
        """Continue one text. Return an iterator over the pieces of the continuation; see `stream_text`."""
        pieces = self.stream_text([prompt], max_new_tokens=max_new_tokens, sampling=sampling)
        return (piece for _, piece in pieces)


def _log_speed(phase: str, tokens: int, seconds: float) -> None:
    _LOG.info("%s: %d tokens in %.3f s, %.1f tokens/s", phase, tokens, seconds, tokens / seconds)


def _choose(sampling: Sampling, logits: Floats, prompt: Ids, generated: Ids, sequence: int) -> int:
    try:
        return sampling.choose(logits, prompt, generated, sequence)
    except ProviderError as error:
        raise ProviderError(f"position {len(prompt) + len(generated)} of sequence {sequence}: {error}") from error


def _pieces(tokens: Iterator[Token], streams: list[TextStream]) -> Iterator[tuple[int, str]]:
    for token in tokens:
        stream = streams[token.sequence]
        piece = "" if token.finish == "stop" else stream.push(token.id)
        if token.finish is not None:
            piece += stream.finish()
        if piece:
            yield token.sequence, piece
