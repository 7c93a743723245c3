"""The state of a batch of sequences, and the operations on it: prefill, decode, rewind, fork and copy.

Each operation first reads records from the store. `RecordDecoder` writes their numbers into the inputs of the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import numpy.typing as npt

from molkv_bundle import (
    Arrays,
    Floats,
    Ids,
    KVDtype,
    ModelConfig,
    NotEnoughMemoryError,
    RequestError,
    WindowDtype,
)
from molkv_runtime.calls import Calls, DynamicCalls, Graph
from molkv_runtime.checks import InOneProcess, token_ids, whole_number
from molkv_runtime.experts import Part
from molkv_runtime.memory import check_memory, state_bytes
from molkv_runtime.record_decoder import RecordDecoder
from molkv_runtime.static_calls import StaticCalls
from molkv_runtime.store import Store


class Sequences(InOneProcess):
    """B sequences, each with its token ids, KV cache and experts, in buffers that are allocated and bound once.

    A sequence of length 0 is free. While some sequences go on (`decode` with `active`), others can be reset, and a
    prompt can start in a free sequence. Only one thread at a time may use an object of this class. Several objects may
    share one graph and one store.
    """

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        store: Store,
        *,
        kv_dtype: KVDtype = "float32",
        window_dtype: WindowDtype = "float32",
        lengths: Sequence[int] = (0,),
        batch_size: int = 1,
        max_length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        """Allocate the buffers of new, empty sequences.

        Args:
            config: The configuration, with the context length and the expert window of the graph.
            graph: The dense graph of the model.
            store: The expert store of the model.
            kv_dtype: Dtype of the KV cache in the graph.
            window_dtype: Dtype of the values in the expert window of the graph.
            lengths: The numbers of positions for which there is a graph, ascending; (0,): one graph for any number.
            batch_size: The number of sequences B.
            max_length: The longest sequence in tokens; default and maximum: the model's context length.
            prefill_chunk: The largest number of prompt tokens in one call, which limits the memory of prefill.
                Default: 128, or the length of the longest static graph.

        Raises:
            ArgumentError: max_length is above the model's context length, or a size is not positive.
            NotEnoughMemoryError: There is not enough RAM.
        """
        super().__init__()
        context = config.max_position_embeddings
        self.max_length = whole_number("max_length", context if max_length is None else max_length, 1, most=context)
        whole_number("batch_size", batch_size, 1)
        if prefill_chunk is not None:
            whole_number("prefill_chunk", prefill_chunk, 1)
        self._in_use = threading.Lock()
        self._store = store
        allocated = context if lengths[0] else self.max_length
        self.state_bytes = state_bytes(config, batch_size, allocated, kv_dtype, window_dtype)
        """The bytes of RAM that these sequences take when they are full."""
        check_memory(self.state_bytes, f"{batch_size} sequences of {allocated} tokens")
        self.lengths = np.zeros(batch_size, np.int64)
        decoder = RecordDecoder(config, store.value_dtype)
        try:
            self._calls: Calls = (
                StaticCalls(config, graph, kv_dtype, batch_size, lengths, prefill_chunk, decoder)
                if lengths[0]
                else DynamicCalls(
                    config, graph, kv_dtype, batch_size, self.max_length, prefill_chunk, window_dtype, decoder
                )
            )
        except MemoryError as error:  # caused by a limit on the address space, which `check_memory` does not know
            raise NotEnoughMemoryError(
                f"{batch_size} sequences of {allocated} tokens do not fit into memory; use fewer or shorter sequences"
            ) from error
        self._ids = np.zeros((batch_size, self.max_length), np.int64)  # the token id at each position
        self._records = store.buffer(batch_size)  # for a decode step
        self._chunk_records = store.buffer(0)  # for a part of a prompt

    def prefill(self, sequence: int, ids: npt.ArrayLike, *, all_logits: bool = False) -> Floats:
        """Append token ids [n] to a sequence.

        Returns:
            Logits of the last position [1, vocab_size]; with `all_logits`, of every position [n, vocab_size].

        Raises:
            RequestError: There are no ids, too many ids for max_length, or an id outside the vocabulary; or another
                thread or process uses these sequences.
        """
        tokens = token_ids("the prompt", ids)
        self._check_number(sequence)
        if len(tokens) == 0:
            raise RequestError("the prompt is empty, expected at least one token")
        self._store.check_ids(tokens)
        with self._exclusively():
            return self._prefill(sequence, tokens, all_logits)

    def _check_number(self, sequence: int) -> None:
        whole_number("sequence", sequence, 0, most=len(self.lengths) - 1)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        self.check_process()
        if not self._in_use.acquire(blocking=False):
            raise RequestError("these sequences are in use by another thread; each thread needs its own, or a session")
        try:
            yield
        finally:
            self._in_use.release()

    def _prefill(self, sequence: int, tokens: Ids, all_logits: bool) -> Floats:
        room = self.max_length - int(self.lengths[sequence])
        if len(tokens) > room:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, expected at most {room} (the rest of max_length "
                f"{self.max_length})"
            )
        start = int(self.lengths[sequence])
        parts = self._calls.parts(sequence, start, len(tokens), all_logits)
        logits = self._prefill_parts(parts, tokens, start)
        # The state changes only now. So it stays as it was if a record cannot be read or the graph fails.
        self._calls.finish(sequence, start + len(tokens))
        self._ids[sequence, start : start + len(tokens)] = tokens
        self.lengths[sequence] = start + len(tokens)
        return np.concatenate(logits)

    def _prefill_parts(self, parts: list[Part], tokens: Ids, start: int) -> list[Floats]:
        """Run parts one after the other. While a part is computed, the records of the next part are read."""
        kept = []
        if len(self._chunk_records) < (longest := max(part.length for part in parts)):
            self._chunk_records = self._store.buffer(longest)
        ids = [tokens[part.start - start :][: part.length] for part in parts]
        pending = self._store.start_gather(ids[0], self._chunk_records)
        try:
            for number, part in enumerate(parts):
                call, logits = self._calls.prepare(part, pending.result())
                if number + 1 < len(parts):
                    pending = self._store.start_gather(ids[number + 1], self._chunk_records)
                call.run()
                kept.append(logits)
        finally:
            pending.wait()
        return kept

    def decode(self, ids: npt.ArrayLike, active: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Append one token id to every active sequence.

        Args:
            ids: Token ids [B].
            active: Whether each sequence continues, bool [B]; default: all. The other sequences keep their length, and
                their rows of the result have no meaning.

        Returns:
            Logits [B, vocab_size], in a buffer that the next step overwrites.

        Raises:
            RequestError: A sequence is full, an id is outside the vocabulary, or another thread or process uses these
                sequences.
        """
        tokens = token_ids("ids", ids)
        if tokens.shape != self.lengths.shape:
            raise RequestError(
                f"there are {tokens.size} token ids, expected one for each of {len(self.lengths)} sequences"
            )
        going = np.ones(len(tokens), bool) if active is None else np.asarray(active)
        if going.shape != tokens.shape or going.dtype != bool:
            raise RequestError(
                f"active: found {going.dtype} {list(going.shape)}, expected bool [{len(tokens)}], one for each sequence"
            )
        with self._exclusively():
            return self._decode(tokens, going.tolist())

    def _decode(self, tokens: Ids, going: list[bool]) -> Floats:
        # Python lists are faster here: after a step of the graph, numpy's code is not in the processor's caches.
        lengths = self.lengths.tolist()
        if any(goes and length >= self.max_length for goes, length in zip(going, lengths, strict=True)):
            raise RequestError(f"a sequence has reached max_length ({self.max_length} tokens) and cannot continue")
        records = self._store.gather(tokens, self._records)
        positions = [min(length, self.max_length - 1) for length in lengths]
        logits = self._calls.decode(positions, going, records)
        for sequence, goes in enumerate(going):
            if goes:
                self._ids[sequence, lengths[sequence]] = tokens[sequence]
        self.lengths += going
        return logits

    def history(self, sequence: int) -> Ids:
        """Return the token ids of a sequence, int64 [length].

        Raises:
            RequestError: There is no such sequence.
        """
        self._check_number(sequence)
        return self._ids[sequence, : self.lengths[sequence]].copy()

    def longest_match(self, ids: Ids) -> tuple[int, int]:
        """Return the sequence that has the longest common prefix with token ids, and the length of this prefix."""
        common = [common_prefix(row[:length], ids) for row, length in zip(self._ids, self.lengths, strict=True)]
        longest = max(common)
        return common.index(longest), longest

    def caches(self, sequence: int) -> Arrays:
        """Return the KV cache of a sequence, by names such as "3.key": views [Hkv, length, head_dim].

        Raises:
            RequestError: There is no such sequence.
        """
        self._check_number(sequence)
        return self._first_slots(sequence, int(self.lengths[sequence]))

    def _first_slots(self, sequence: int, length: int) -> Arrays:
        return {name: array[:, :length] for name, array in self._calls.caches(sequence).items()}

    def rewind(self, sequence: int, length: int) -> None:
        """Shorten a sequence to its first `length` tokens. The other sequences stay as they are.

        The KV cache of these tokens stays. Experts that the expert window has lost are read from the store again.

        Raises:
            RequestError: There is no such sequence, the sequence is shorter than `length`, or another thread or process
                uses these sequences.
            BundleError: A record cannot be read. The sequence is then unchanged.
        """
        self._check_number(sequence)
        with self._exclusively():
            before = int(self.lengths[sequence])
            whole_number("length", length, 0, most=before)
            lookback = self._calls.experts.lookback
            # The window has the experts of the last `lookback` positions.
            self._restore_experts(sequence, self._ids[sequence], length, min(length, before - lookback))
            self.lengths[sequence] = length

    def reset(self, sequence: int) -> None:
        """Free a sequence, so that another one can take its place; see `rewind`."""
        self.rewind(sequence, 0)

    def fork(self, sequence: int) -> int:
        """Copy a sequence to a free sequence. Both can then continue in different ways.

        Returns:
            The index of the copy.

        Raises:
            RequestError: There is no such sequence, no sequence is free, or another thread or process uses these
                sequences.
            BundleError: A record cannot be read. Nothing is changed then.
        """
        self._check_number(sequence)
        free = np.flatnonzero(self.lengths == 0)
        if not len(free):
            raise RequestError(f"sequence: found {len(self.lengths)} sequences in use, expected a free one; reset one")
        target = int(free[0])
        self.copy(target, self, sequence, int(self.lengths[sequence]))
        return target

    def copy(self, sequence: int, source: Sequences, source_sequence: int, length: int) -> None:
        """Make a free sequence a copy of the first `length` tokens of another sequence.

        Args:
            sequence: Index of the free sequence.
            source: The sequences to copy from, of the same graph and store; may be this object.
            source_sequence: Index of the sequence to copy from.
            length: Number of tokens to copy.

        Raises:
            RequestError: There is no such sequence, the sequence is in use (its length is not 0), the source is shorter
                than `length`, or another thread or process uses these sequences.
            BundleError: A record cannot be read. The sequence then stays free.
        """
        with nullcontext() if source is self else source._exclusively():
            found = source.caches(source_sequence)
            whole_number("length", length, 0, most=int(source.lengths[source_sequence]))

            def read(arrays: Arrays) -> None:
                for name, array in arrays.items():
                    np.copyto(array, found[name][:, :length])

            self.load(sequence, source.history(source_sequence)[:length], read)

    def load(self, sequence: int, ids: npt.ArrayLike, read: Callable[[Arrays], None]) -> None:
        """Fill a free sequence with token ids [n] and a KV cache that was computed before.

        Args:
            sequence: Index of the free sequence.
            ids: The token ids.
            read: Writes finite numbers to the KV cache, which it gets as `caches` returns it. If it raises an
                exception, the sequence stays free.

        Raises:
            RequestError: There is no such sequence, the sequence is in use (its length is not 0), there are too many
                ids, or an id is outside the vocabulary; or another thread or process uses these sequences.
            BundleError: A record cannot be read. The sequence then stays free.
        """
        self._check_number(sequence)
        tokens = token_ids("ids", ids)
        self._store.check_ids(tokens)
        with self._exclusively():
            if self.lengths[sequence]:
                raise RequestError(
                    f"sequence: {sequence} is in use (it has {self.lengths[sequence]} tokens), expected a free "
                    "sequence; reset it first"
                )
            if len(tokens) > self.max_length:
                raise RequestError(f"ids: found {len(tokens)} token ids, expected at most {self.max_length}")
            self._restore_experts(sequence, tokens, len(tokens), len(tokens))
            arrays = self._first_slots(sequence, len(tokens))
            try:
                read(arrays)
            except BaseException:
                for array in arrays.values():
                    array[...] = 0  # a NaN in an unused slot would reach the logits
                raise
            self._ids[sequence, : len(tokens)] = tokens
            self.lengths[sequence] = len(tokens)

    def trim(self) -> None:
        """Free the memory that only prompts need. The next prompt allocates it again."""
        self._chunk_records = self._store.buffer(0)
        self._calls.experts.trim()

    def _restore_experts(self, sequence: int, ids: Ids, length: int, end: int) -> None:
        """Read the experts again that position `length` sees before position `end`."""
        start = max(0, length - self._calls.experts.lookback)
        if start >= end:
            return
        records = self._store.gather(ids[start:end], self._store.buffer(end - start))
        self._calls.experts.restore(sequence, start, records)


def common_prefix(first: Ids, second: Ids) -> int:
    """Return the number of equal token ids at the start of both arrays."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
