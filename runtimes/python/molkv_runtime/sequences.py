"""The state of a batch of sequences, and the two operations on it: prefill and decode.

Both operations first read records from the store and decode the records, usually to float32 (`RecordDecoder`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_bundle import (
    Floats,
    Ids,
    KVDtype,
    ModelConfig,
    Records,
    RequestError,
    RowDtype,
    ValueDecoder,
    WindowDtype,
    decoded_dtype,
)
from molkv_runtime.calls import Calls, DynamicCalls, Graph
from molkv_runtime.checks import InOneProcess, token_ids, whole_number
from molkv_runtime.experts import Part
from molkv_runtime.memory import check_memory
from molkv_runtime.static_calls import StaticCalls
from molkv_runtime.store import Store

# An ONNX model of one node, y = Cast(x), from float16 [n] to float32 [n]. A test compares these bytes with the
# model that the onnx package builds.
CAST_MODEL = bytes.fromhex(
    "080a3a400a170a01781201792204436173742a090a02746f1801a001021201675a100a0178120b0a09080a12050a0312016e"
    "62100a0179120b0a09080112050a0312016e42040a001016"
)

_WORTH_A_CALL = 16_384  # for fewer numbers, numpy is faster than a call of ONNX Runtime

GROUP = 16  # number of records that prefill decodes together; they fit into the processor's cache


class Sequences(InOneProcess):
    """B sequences, each with its KV cache and its experts, in buffers that are allocated and bound once.

    Only one thread at a time may use an object of this class. Several objects may share one graph and one store.
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
            RequestError: max_length is above the model's context length, a size is not positive, or there is not
                enough RAM.
        """
        super().__init__()
        context = config.max_position_embeddings
        self.max_length = context if max_length is None else whole_number("max_length", max_length, 1)
        if self.max_length > context:
            raise RequestError(
                f"max_length: found {max_length}, expected 1 to {context} (the model's context in tokens)"
            )
        whole_number("batch_size", batch_size, 1)
        if prefill_chunk is not None:
            whole_number("prefill_chunk", prefill_chunk, 1)
        self._in_use = threading.Lock()
        self._store = store
        allocated = context if lengths[0] else self.max_length
        check_memory(config, batch_size, allocated, kv_dtype, window_dtype)
        self.lengths = np.zeros(batch_size, np.int64)
        try:
            self._calls: Calls = (
                StaticCalls(config, graph, kv_dtype, batch_size, lengths, prefill_chunk)
                if lengths[0]
                else DynamicCalls(config, graph, kv_dtype, batch_size, self.max_length, prefill_chunk, window_dtype)
            )
        except MemoryError as error:  # caused by a limit on the address space, which `check_memory` does not know
            raise RequestError(
                f"{batch_size} sequences of {allocated} tokens do not fit into memory; use fewer or shorter sequences"
            ) from error
        self._records = store.buffer(batch_size)  # for a decode step
        self._decoder = RecordDecoder(config, store.value_dtype, window_dtype)
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
        if whole_number("sequence", sequence, 0) >= len(self.lengths):
            raise RequestError(f"sequence: found {sequence}, expected 0 to {len(self.lengths) - 1}")
        if len(tokens) == 0:
            raise RequestError("the prompt is empty, expected at least one token")
        self._store.check_ids(tokens)
        self._begin()
        try:
            return self._prefill(sequence, tokens, all_logits)
        finally:
            self._in_use.release()

    def _begin(self) -> None:
        self.check_process()
        if not self._in_use.acquire(blocking=False):
            raise RequestError("this Sequences object is in use by another thread; make one for each thread")

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
                call, logits = self._calls.prepare(part, self._decoded(pending.result()))
                if number + 1 < len(parts):
                    pending = self._store.start_gather(ids[number + 1], self._chunk_records)
                call.run()
                kept.append(logits)
        finally:
            pending.wait()
        return kept

    def _decoded(self, records: Records) -> Iterator[Records]:
        """Yield decoded records in groups."""
        for first in range(0, len(records), GROUP):
            yield self._decoder.decode(records[first : first + GROUP])

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
        self._begin()
        try:
            return self._decode(tokens, going.tolist())
        finally:
            self._in_use.release()

    def _decode(self, tokens: Ids, going: list[bool]) -> Floats:
        # Python lists are faster here: after a step of the graph, numpy's code is not in the processor's caches.
        lengths = self.lengths.tolist()
        if any(goes and length >= self.max_length for goes, length in zip(going, lengths, strict=True)):
            raise RequestError(f"a sequence has reached max_length ({self.max_length} tokens) and cannot continue")
        records = self._decoder.decode(self._store.gather(tokens, self._records))
        positions = [min(length, self.max_length - 1) for length in lengths]
        logits = self._calls.decode(positions, going, records)
        self.lengths += going
        return logits


class HalfReader:
    """A converter from float16 to float32 that uses ONNX Runtime. Repeated calls with the same memory are fastest.

    numpy converts one number at a time, which is ten times slower than the processor's instructions for float16
    (docs/performance.md has figures). ONNX Runtime uses these instructions, and is already a dependency.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the work is too small for several threads
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(CAST_MODEL, options, providers=["CPUExecutionProvider"])
        self._bound: tuple[int, int, int] | None = None

    def read(self, halves: npt.NDArray[np.float16], out: Floats) -> None:
        """Convert `halves` [n] to `out` [n]; both must be contiguous."""
        if halves.size < _WORTH_A_CALL:
            np.copyto(out, halves)
            return
        place = halves.ctypes.data, out.ctypes.data, halves.size
        if place != self._bound:
            self._binding = self._session.io_binding()
            self._binding.bind_input("x", "cpu", 0, np.float16, [halves.size], place[0])
            self._binding.bind_output("y", "cpu", 0, np.float32, [halves.size], place[1])
            self._bound = place
        self._session.run_with_iobinding(self._binding)


class RecordDecoder:
    """A decoder from stored records to float32. Its results are in memory that the next call reuses.

    Values of an int8 store stay int8 codes with scales if the window is int8.
    """

    def __init__(self, config: ModelConfig, dtype: RowDtype, window_dtype: WindowDtype = "float32") -> None:
        self._values = ValueDecoder(dtype)
        self._dtype = dtype
        self._vectors = config.record_vectors() if config.layers_with_experts else ()
        self._keeps_codes = dtype == window_dtype == "int8"
        self._decoded = decoded_dtype(config, dtype, keep_codes=self._keeps_codes)
        self._halves = HalfReader() if dtype == "float16" else None
        self._out: Records = np.zeros(0, self._decoded)

    def decode(self, records: Records) -> Records:
        """Decode records [n].

        Returns:
            Structured array [n] with "embedding" [d] and "layers" [L], which has the model's vectors by name. The
            vectors are float32, or int8 codes with their scales. The next call overwrites the array. For a float32
            store the result is `records` itself.
        """
        if self._dtype == "float32":
            return records
        if len(self._out) < len(records):
            self._out = np.zeros(len(records), self._decoded)
        out = self._out[: len(records)]
        if self._halves is not None:
            self._halves.read(_flat(records, np.float16), _flat(out, np.float32))
            return out
        out["embedding"] = records["embedding"]
        for vector in self._vectors:
            layers = records["layers"]
            if vector.scale and not self._keeps_codes:
                self._values.decode(layers[vector.name], layers[vector.scale], out["layers"][vector.name])
                continue
            for name in filter(None, (vector.name, vector.scale)):
                out["layers"][name] = layers[name]
        return out


def _flat(records: Records, dtype: type[np.floating[Any]]) -> np.ndarray[Any, Any]:
    return records.view(np.uint8).view(dtype)
