"""The driver's main class, `Generator`, which generates text with a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import msgspec
import numpy as np
from tokenizers import Tokenizer

from molkv_bundle import (
    TOKENIZER,
    Access,
    ArgumentError,
    Bundle,
    BundleError,
    Ids,
    ModelConfig,
    NotEnoughMemoryError,
    RequestError,
    SessionFile,
    is_unicode,
)
from molkv_runtime.calls import DenseGraph, Graph
from molkv_runtime.checks import InOneProcess, list_of, token_ids, whole_number
from molkv_runtime.continuation import Continuation, generate
from molkv_runtime.onnxruntime_session import CPU, Placement, Target
from molkv_runtime.options import Finish, Options, Settings, Token
from molkv_runtime.prefix_cache import PrefixCache
from molkv_runtime.probe import probe
from molkv_runtime.providers import resolve
from molkv_runtime.sampling import Sampling
from molkv_runtime.sequences import Sequences
from molkv_runtime.session import Session
from molkv_runtime.store import RecordReader, Store, open_store
from molkv_runtime.tokenizer import TextStream, bundle_tokenizer, encode

_PREFIX_CACHE_BYTES = 256 * 1024**2
ROOM_TO_GROW = 512  # tokens


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt, complete."""

    text: str  # without the prompt
    prompt_ids: list[int]
    tokens: list[Token]
    first_token_seconds: float  # from the call to this text's first token
    seconds: float  # from the call to this text's end

    @property
    def finish(self) -> Finish:
        """The reason why the text ends."""
        return self.tokens[-1].finish


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
        prefix_cache_bytes: int = _PREFIX_CACHE_BYTES,
    ) -> None:
        """Load a bundle's graph and open its store.

        Args:
            bundle: An open bundle; or the folder of a bundle, or its URL (see `Bundle`).
            target: The provider that runs the graph, with the provider's options; or only the name of a preset in
                `providers.PRESETS`.
            profile: The profile of the graph to run; default: the best profile for the provider. The argument has no
                effect if `bundle` is an open `Bundle`, which already has a profile.
            store_access: How to read records: "pread" or "mmap", see `ExpertStore`.
            verify_checksums: Whether to check the checksum of each record when it is read.
            verify_provider: Whether to compare a provider other than cpu with the golden vectors before it is used.
            graph: The implementation of the dense graph; default: ONNX Runtime sessions for `target`.
            store: The source of records; default: the bundle's store, with `store_access` and `verify_checksums`.
            prefix_cache_bytes: The RAM for the states of ended calls. A later prompt that begins like an earlier text
                reuses the state, and computes only its other tokens. 0 switches this off. Then the same call gives the
                same bits each time; otherwise logits can differ by rounding.

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
        self.store: Store = store or open_store(self.bundle, access=store_access, verify_checksums=verify_checksums)
        self.graph: Graph = graph or DenseGraph(self.bundle, target)
        self.default_sampling = Sampling(**msgspec.structs.asdict(self.bundle.manifest.generation.sampling))
        """The sampling parameters of the bundle, which apply unless a caller gives others."""
        whole_number("prefix_cache_bytes", prefix_cache_bytes, 0)
        self._prefixes = PrefixCache(prefix_cache_bytes)
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
        graph = self.bundle.graph()
        make = partial(
            Sequences,
            self.config,
            self.graph,
            self.store,
            kv_dtype=graph.kv_dtype,
            window_dtype=graph.window_dtype,
            lengths=graph.lengths,
            batch_size=batch_size,
            max_length=max_length,
            prefill_chunk=prefill_chunk,
        )
        with suppress(NotEnoughMemoryError):
            return make()
        self._prefixes.clear()  # perhaps there is enough RAM without the states that are kept
        return make()

    def stream(self, prompts: Sequence[Sequence[int]], **options: Unpack[Options]) -> Iterator[Token]:
        """Continue a batch of prompts, which may have different lengths. A step adds one token to each sequence.

        Args:
            prompts: A list of token ids for each prompt.
            options: See `Options`.

        Returns:
            An iterator over the new tokens of all sequences.

        Raises:
            RequestError: A prompt is empty or too long, an id is outside the vocabulary, or an option is impossible.
            BundleError: There are stop strings, but the bundle has no tokenizer.
        """
        settings = self.settings(**options)
        ids = [token_ids("a prompt", prompt) for prompt in list_of("prompts", "prompts", prompts)]
        return self._start(ids, settings, shows_text=bool(settings.stop))

    def settings(self, **options: Unpack[Options]) -> Settings:
        """Check options, and return them with the defaults of the bundle. For the errors see `stream`."""
        self.check_process()
        end_ids = frozenset(self.bundle.manifest.generation.eos_token_ids)
        settings = Settings(sampling=self.default_sampling, stop_ids=end_ids).updated(options, self.config.vocab_size)
        if settings.stop and TOKENIZER in self.bundle.manifest.files:
            # A special token has no text in a stream, so its id must end the text.
            added = self.tokenizer.get_added_tokens_decoder().items()
            special = {token_id for token_id, token in added if token.special and token.content in settings.stop}
            settings = settings._replace(stop_ids=settings.stop_ids | special)
        if settings.lookup and self.bundle.graph().lengths[0]:
            what = f"0 for profile {self.bundle.profile}, whose graphs return the logits of one position"
            raise ArgumentError("lookup", settings.lookup, what)
        return settings

    def continuation(
        self, prompt: Ids, settings: Settings, *, sequence: int = 0, of: int = 1, shows_text: bool = True
    ) -> Continuation:
        """Check a prompt, and return its `Continuation`.

        Args:
            prompt: Token ids [n].
            settings: The result of `settings`.
            sequence: Index of the prompt in its call.
            of: Number of prompts of the call.
            shows_text: Whether the tokens get their text.

        Raises:
            RequestError: The prompt is empty or too long, or has an id outside the vocabulary.
            BundleError: The text is shown, but the bundle has no tokenizer.
        """
        context = self.config.max_position_embeddings
        if not 0 < len(prompt) <= context:
            which = "the prompt" if of == 1 else f"prompt {sequence + 1} of {of}"
            raise RequestError(f"{which} has {len(prompt)} tokens, expected 1 to {context} (the model's context)")
        self.store.check_ids(prompt)
        stream = TextStream(self.tokenizer, prompt.tolist()) if shows_text else None
        return Continuation(sequence, prompt, context + 1 - len(prompt), settings, stream)

    def _start(self, ids: Sequence[Ids], settings: Settings, *, shows_text: bool) -> Iterator[Token]:
        texts = [
            self.continuation(prompt, settings, sequence=index, of=len(ids), shows_text=shows_text)
            for index, prompt in enumerate(ids)
        ]
        return self._steps(self._state(texts), texts)

    def _steps(self, state: Sequences, texts: Sequence[Continuation]) -> Iterator[Token]:
        try:
            yield from generate(state, texts)
        except GeneratorExit:  # the caller does not want more tokens
            self._prefixes.put(state)
            raise
        self._prefixes.put(state)  # not after an error, since the state may contain wrong numbers
        if isinstance(self.store, RecordReader):
            self.store.log_reads()

    def room_for(self, length: int) -> int:
        """Return the `max_length` of sequences for texts of `length` tokens: at most the model's context.

        Static graphs allocate the whole context in any case.
        """
        context = self.config.max_position_embeddings
        return context if self.bundle.graph().lengths[0] else min(length, context)

    def _state(self, texts: Sequence[Continuation]) -> Sequences:
        """Return sequences for texts. They hold those parts of the texts that earlier calls have computed."""
        room = self.room_for(max(len(text.ids) + text.room for text in texts))
        # With more room, the next call of a conversation needs no longer state. Unused memory is only reserved.
        roomy = self.room_for(room + ROOM_TO_GROW) if len(texts) == 1 else room
        with suppress(NotEnoughMemoryError):  # for the earlier state and a new one; this drops the earlier state
            return self._reused(texts, room) or self.sequences(len(texts), roomy)
        return self.sequences(len(texts), room)

    def _reused(self, texts: Sequence[Continuation], room: int) -> Sequences | None:
        """Return sequences of at least `room` tokens that hold parts of the texts; None if no earlier call has any."""
        state = None
        for text in texts:
            if (found := self._prefixes.take(text.ids)) is None:
                continue
            replaces = len(texts) == 1 and found.is_most_of_the_state
            if replaces and found.state.max_length >= room:
                return found.state
            if replaces:  # a conversation grows, so allocate more than this call needs
                room = self.room_for(max(room, 2 * found.state.max_length))
            state = state or self.sequences(len(texts), room)
            state.copy(text.sequence, found.state, found.sequence, found.common)
            if not replaces:
                self._prefixes.put(found.state)
        return state

    def stream_text(self, prompts: Sequence[str], **options: Unpack[Options]) -> Iterator[tuple[int, str]]:
        """Continue a batch of texts.

        Args:
            prompts: The texts.
            options: See `Options`.

        Returns:
            An iterator over (index of the prompt, piece of text). A piece has only complete characters. The pieces do
            not contain the prompt, special tokens, the token that ends a text, or a stop string.

        Raises:
            RequestError: A prompt is empty or too long, or an option is impossible.
            BundleError: The bundle has no tokenizer.
        """
        _, tokens = self._encoded(prompts, options)
        return ((token.sequence, token.text) for token in tokens if token.text)

    def text(self, prompt: str, **options: Unpack[Options]) -> Iterator[str]:
        """Continue one text. Return an iterator over the pieces of the continuation; see `stream_text`."""
        return (piece for _, piece in self.stream_text([prompt], **options))

    def complete(self, prompts: Sequence[str], **options: Unpack[Options]) -> list[Completion]:
        """Continue a batch of texts. Return the results when all texts have ended. For the errors see `stream_text`."""
        start = time.perf_counter()
        ids, stream = self._encoded(prompts, options)
        tokens: list[list[Token]] = [[] for _ in ids]
        seconds: list[list[float]] = [[] for _ in ids]
        for token in stream:
            tokens[token.sequence].append(token)
            seconds[token.sequence].append(time.perf_counter() - start)
        return [
            Completion("".join(token.text for token in own), prompt.tolist(), own, times[0], times[-1])
            for prompt, own, times in zip(ids, tokens, seconds, strict=True)
        ]

    def _encoded(self, prompts: Sequence[str], options: Options) -> tuple[list[Ids], Iterator[Token]]:
        settings = self.settings(**options)
        ids: list[Ids] = [np.array(prompt, np.int64) for prompt in self.encode(list_of("texts", "prompts", prompts))]
        return ids, self._start(ids, settings, shows_text=True)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of texts. For `add_special_tokens` see `tokenizer.encode`.

        Raises:
            RequestError: A text is not Unicode text.
            BundleError: The bundle has no tokenizer, or the tokenizer has a defect.
        """
        for text in texts:
            if not isinstance(text, str):
                kind = type(text).__name__
                raise RequestError(f"prompts: found an item of type {kind}, expected str; use `stream` for token ids")
            if not is_unicode(text):
                raise RequestError(f"the prompt {text[:20]!r} contains bytes that are not text, expected UTF-8")
        where = f"{self.bundle.where}/{TOKENIZER}"
        return encode(self.tokenizer, texts, where, BundleError, add_special_tokens=add_special_tokens)

    def session(self) -> Session:
        """Return a new session: a text that grows over several calls."""
        return Session(self)

    def restore(self, path: str | Path) -> Session:
        """Return the session that `Session.save` wrote to a file.

        Raises:
            SessionError: The file is damaged, or belongs to another bundle, another graph or another KV dtype.
            RequestError: There is not enough RAM.
        """
        return Session.restored(self, SessionFile(Path(path), self.bundle))
