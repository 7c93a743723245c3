"""The state of several sequences in one model, and the two steps that move it on: prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from molkv_runtime.config import ModelConfig
from molkv_runtime.dense_graph import Arrays, Call, Graph
from molkv_runtime.errors import RequestError
from molkv_runtime.experts import expert_state
from molkv_runtime.manifest import KVDtype
from molkv_runtime.memory import available_memory, cache_bytes, window_bytes
from molkv_runtime.record import Records
from molkv_runtime.record_decoder import GROUP, RecordDecoder
from molkv_runtime.rope import Floats
from molkv_runtime.store import Ids, Store
from molkv_runtime.window import Part

PREFILL_CHUNK = 128


class Sequences:
    """B sequences, each with its KV cache and its experts, all in buffers that are allocated and bound once."""

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        store: Store,
        *,
        kv_dtype: KVDtype = "float32",
        batch_size: int = 1,
        max_length: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        """Allocate.

        Args:
            config: The model.
            graph: Its dense graph.
            store: Its expert store.
            kv_dtype: Of the KV cache, which the graph decides.
            batch_size: B.
            max_length: Longest sequence in tokens; default and maximum is the model's context.
            prefill_chunk: Tokens of a prompt that are run in one call; bounds the memory that prefill needs.

        Raises:
            RequestError: max_length is more than the model's context, a size is not positive, or there is not enough
                RAM.
        """
        context = config.max_position_embeddings
        self.max_length = context if max_length is None else max_length
        if not 0 < self.max_length <= context:
            raise RequestError(f"max_length is {max_length}, expected 1 to the model's context of {context} tokens")
        for name, value in (("batch_size", batch_size), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise RequestError(f"{name} is {value}, expected 1 or more")
        self._config, self._graph, self._store = config, graph, store
        self._kv_dtype: KVDtype = kv_dtype
        self._prefill_chunk = prefill_chunk
        self._check_memory(batch_size)
        try:
            self._allocate(batch_size)
        except MemoryError as error:  # of a limit on the address space, which no one tells before
            raise RequestError(
                f"{batch_size} sequences of {self.max_length} tokens do not fit into memory; ask for less"
            ) from error
        self._decode_call = self._bind_decode()

    def _check_memory(self, batch_size: int) -> None:
        # Memory is given out when it is written, so asking for too much would fail later, and not with an error.
        config = self._config
        window = window_bytes(config, self.max_length)
        each = cache_bytes(config, self.max_length, self._kv_dtype) + window + 4 * config.vocab_size
        needed, free = batch_size * each + 2 * window, available_memory()  # a chunk of a prompt: two windows at least
        if needed > free:
            raise RequestError(
                f"{batch_size} sequences of {self.max_length} tokens need {needed / 1024**2:,.0f} MiB of RAM, "
                f"{free / 1024**2:,.0f} MiB are free; ask for fewer or shorter ones"
            )

    def _allocate(self, batch_size: int) -> None:
        config = self._config
        self.lengths = np.zeros(batch_size, np.int64)
        self._experts = expert_state(config, batch_size, self.max_length)
        cache_shape = (batch_size, config.num_key_value_heads, self.max_length, config.head_dim)
        self._cache = {
            f"{layer}.{kind}": np.zeros(cache_shape, self._kv_dtype)
            for layer in range(config.num_hidden_layers)
            for kind in ("key", "value")
        }
        self._embeds = np.zeros((batch_size, 1, config.hidden_size), np.float32)
        self._positions = np.zeros((batch_size, 1), np.int64)
        self._seqlens = np.zeros(batch_size, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.zeros((batch_size, 1, config.vocab_size), np.float32)
        self._records = self._store.buffer(batch_size)  # of a decode step
        self._decoder = RecordDecoder(config, self._store.value_dtype)
        self._chunk_records = self._store.buffer(0)  # of a prefill chunk

    def _bind_decode(self) -> Call:
        inputs: Arrays = {
            "inputs_embeds": self._embeds,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            "logits_to_keep": np.ones(1, np.int64),
            **self._experts.decode_inputs,
        }
        if self._config.has_keys:
            inputs["position_ids"] = self._positions
        return self._bind(inputs, self._logits, slice(None))

    def _bind(self, inputs: Arrays, logits: Floats, rows: slice) -> Call:
        # Past and present are the same memory: the graph writes the new keys and values in place.
        cache = {name: array[rows] for name, array in self._cache.items()}
        past = {f"past_key_values.{name}": array for name, array in cache.items()}
        present = {f"present.{name}": array for name, array in cache.items()}
        return self._graph.bind({**inputs, **past}, {"logits": logits, **present})

    def prefill(self, sequence: int, ids: npt.ArrayLike, *, all_logits: bool = False) -> Floats:
        """Append token ids [n] to a sequence.

        Returns:
            Logits of the last position [1, vocab_size], or with all_logits of every position [n, vocab_size].

        Raises:
            RequestError: There are no ids, too many for max_length, or one is outside the vocabulary.
        """
        tokens = np.asarray(ids)
        if not 0 <= sequence < len(self.lengths):
            raise RequestError(f"sequence is {sequence}, expected 0 to {len(self.lengths) - 1}")
        if tokens.ndim != 1 or len(tokens) == 0:
            raise RequestError("the prompt is empty, expected at least one token")
        self._store.check_ids(tokens)
        room = self.max_length - int(self.lengths[sequence])
        if len(tokens) > room:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, there is room for {room} of max_length {self.max_length}"
            )
        logits = list(self._prefill_chunks(sequence, self._chunks(tokens), all_logits))
        # Only now: if a record cannot be read or the graph fails, the sequence is what it was before.
        end = int(self.lengths[sequence]) + len(tokens)
        self._experts.finish(sequence, end)
        self.lengths[sequence] = end
        return np.concatenate(logits) if all_logits else logits[-1]

    def _prefill_chunks(self, sequence: int, chunks: list[Ids], all_logits: bool) -> Iterator[Floats]:
        """Run chunks one after the other; while one is being computed, the records of the next are being read."""
        if len(self._chunk_records) < (longest := max(map(len, chunks))):
            self._chunk_records = self._store.buffer(longest)
        start = int(self.lengths[sequence])
        pending = self._store.start_gather(chunks[0], self._chunk_records)
        try:
            for number, chunk in enumerate(chunks):
                part, is_last = Part(sequence, start, len(chunk), follows=number > 0), number + 1 == len(chunks)
                # The LM head is a large part of the work; of a chunk in the middle nobody wants to know.
                keep = len(chunk) if all_logits else int(is_last)
                call, logits = self._bind_prefill(part, pending.result(), keep)
                if not is_last:
                    pending = self._store.start_gather(chunks[number + 1], self._chunk_records)
                call.run()
                start += len(chunk)
                yield logits[0]
        finally:
            pending.wait()

    def _chunks(self, tokens: Ids) -> list[Ids]:
        """Cut a prompt so that no chunk needs padding: multiples of the block length, then what is left."""
        block = self._experts.block_length
        size = self._prefill_chunk
        if size <= block:
            return [tokens[start : start + size] for start in range(0, len(tokens), size)]
        size -= size % block
        whole = len(tokens) - len(tokens) % block
        starts = [*range(0, whole, size), whole]
        ends = [*starts[1:], len(tokens)]
        return [tokens[a:b] for a, b in zip(starts, ends, strict=True) if a < b]

    def _bind_prefill(self, part: Part, records: Records, keep: int) -> tuple[Call, Floats]:
        """Make the call for a part of a prompt, and the memory for its last logits [1, keep, vocab_size]."""
        end = part.start + part.length
        logits = np.empty((1, keep, self._config.vocab_size), np.float32)
        embeds = np.empty((1, part.length, self._config.hidden_size), np.float32)
        inputs: Arrays = {
            "inputs_embeds": embeds,
            "seqlens_k": np.array([end - 1], np.int32),
            "total_sequence_length": np.array(end, np.int32),
            "logits_to_keep": np.array([keep], np.int64),
            **self._experts.prefill(part, self._decoded(records, embeds[0])),
        }
        if self._config.has_keys:
            inputs["position_ids"] = np.arange(part.start, end)[None]
        return self._bind(inputs, logits, slice(part.sequence, part.sequence + 1)), logits

    def _decoded(self, records: Records, embeds: Floats) -> Iterator[Records]:
        """Decode records in groups, and put the embeddings aside."""
        for first in range(0, len(records), GROUP):
            decoded = self._decoder.decode(records[first : first + GROUP])
            embeds[first : first + GROUP] = decoded["embedding"]
            yield decoded

    def decode(self, ids: npt.ArrayLike, active: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Append one token id to every active sequence.

        Args:
            ids: Token ids [B].
            active: Which sequences go on, bool [B]; default all. The others keep their length, and what the
                result holds for them means nothing.

        Returns:
            Logits [B, vocab_size], in a buffer that the next step overwrites.

        Raises:
            RequestError: A sequence is full, or an id is outside the vocabulary.
        """
        tokens = np.asarray(ids)
        if tokens.shape != self.lengths.shape:
            raise RequestError(
                f"there are {tokens.size} token ids, expected one for each of {len(self.lengths)} sequences"
            )
        # Plain numbers, not arrays: behind a step of the graph nothing of numpy is in the caches any more.
        lengths = self.lengths.tolist()
        going = [True] * len(lengths) if active is None else active.tolist()
        if any(goes and length >= self.max_length for goes, length in zip(going, lengths, strict=True)):
            raise RequestError(f"a sequence has reached max_length ({self.max_length} tokens) and cannot go on")
        records = self._decoder.decode(self._store.gather(tokens, self._records))
        self._embeds[:, 0] = records["embedding"]
        longest = 0
        for sequence, length in enumerate(lengths):
            position = min(length, self.max_length - 1)
            self._experts.decode(sequence, position, records[sequence : sequence + 1])
            self._positions[sequence, 0] = self._seqlens[sequence] = position
            longest = max(longest, position + 1)
        self._total[...] = longest
        self._decode_call.run()
        self.lengths += going
        return self._logits[:, 0]
