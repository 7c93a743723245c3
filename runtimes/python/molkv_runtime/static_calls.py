"""Calls of a static profile's graphs, for one sequence and a fixed number of positions. The host writes the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from molkv_bundle import HIDDEN, Arrays, Floats, KVDtype, ModelConfig, Records, Rotation, graph_interface, rotary_tables
from molkv_runtime.calls import Call, Graph
from molkv_runtime.experts import InputFormat, Part
from molkv_runtime.families import expert_state
from molkv_runtime.record_decoder import RecordDecoder, Scratch


class StaticCalls:
    """The `Calls` of a static profile. The graph for one position returns logits; graphs for more positions do not.

    So the last token of a prompt is a separate call. For the tokens before it, each call uses the longest graph for
    more than one position that needs no padding. If all these graphs need padding, the call uses the shortest one. A
    single token uses the graph for one position.
    """

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        kv_dtype: KVDtype,
        batch_size: int,
        lengths: Sequence[int],
        prefill_chunk: int | None,
        decoder: RecordDecoder,
    ) -> None:
        self._config, self._graph, self._decoder = config, graph, decoder
        self._lengths = [length for length in lengths if 1 < length <= (prefill_chunk or length)]
        self._dtype: npt.DTypeLike = kv_dtype
        self._interfaces = {length: graph_interface(config, kv_dtype, length) for length in lengths}
        context = config.max_position_embeddings
        self.experts = expert_state(config, batch_size, context, InputFormat(self._dtype, HIDDEN), decoder)
        self._caches = {
            layer: (
                np.zeros((batch_size, heads, head_dim, context), self._dtype),
                np.zeros((batch_size, heads, context, head_dim), self._dtype),
            )
            for layer, heads, head_dim in config.kv_caches()
        }
        self._rotary: Arrays = {}
        for name, rotation in config.rotations().items():
            self._rotary |= self._rotary_rows(name, rotation)
        self._embeds = Scratch(self._dtype)
        self._logits = np.zeros((batch_size, config.vocab_size), np.float32)
        self._steps = [self._decode_call(sequence) for sequence in range(batch_size)]

    def _rotary_rows(self, name: str, rotation: Rotation) -> Arrays:
        """Return cos and sin of all positions. A rotation of x = (first, second) is x * cos + (second, first) * sin."""
        positions = np.arange(self._config.max_position_embeddings)
        cos, sin = rotary_tables(positions, rotation.size, rotation.rope_theta)
        both = {"cos": np.concatenate([cos, cos], axis=-1), "sin": np.concatenate([-sin, sin], axis=-1)}
        return {f"{name}_{function}": rows.astype(self._dtype) for function, rows in both.items()}

    def _decode_call(self, sequence: int) -> _StaticCall:
        experts = {name: array[sequence : sequence + 1] for name, array in self.experts.decode_inputs.items()}
        return self._bind(1, sequence, experts, self._logits[sequence : sequence + 1])

    def _bind(self, length: int, sequence: int, experts: Arrays, logits: Floats) -> _StaticCall:
        inputs, outputs = self._interfaces[length]
        known: Arrays = {"logits": logits}
        rows: Arrays = {}
        for tensor in inputs:
            shape = [int(size) for size in tensor.shape]
            if tensor.name in experts:  # the graph's input may have no dimension for sequences
                array = experts[tensor.name]
                known[tensor.name] = array[0] if array.ndim > len(shape) else array
            elif tensor.name == "inputs_embeds" or tensor.name in self._rotary:
                known[tensor.name] = rows[tensor.name] = np.zeros(shape, self._dtype)
        mask = known["attention_mask"] = self._causal_mask(length)
        caches = []
        for layer, (keys, values) in self._caches.items():
            new_keys = np.zeros((*keys.shape[1:-1], length), self._dtype)
            new_values = np.zeros((values.shape[1], length, values.shape[-1]), self._dtype)
            known[f"past_key_values.{layer}.key"], known[f"present.{layer}.key"] = keys[sequence], new_keys
            known[f"past_key_values.{layer}.value"], known[f"present.{layer}.value"] = values[sequence], new_values
            caches.append(_Cache(keys[sequence], values[sequence], new_keys, new_values))
        bound = ({tensor.name: known[tensor.name] for tensor in each} for each in (inputs, outputs))
        call = self._graph.bind(length, *bound)
        return _StaticCall(call, rows, mask[..., :-length], caches)

    def _causal_mask(self, length: int) -> Floats:
        """Return a causal mask [1, G*T, S+T] that hides the whole cache. It also hides padding, which comes last."""
        config = self._config
        mask = np.full((length, config.max_position_embeddings + length), HIDDEN, self._dtype)
        mask[:, -length:] = np.triu(mask[:, -length:], k=1)
        return np.tile(mask, (config.num_attention_heads // config.kv_caches()[0].num_key_value_heads, 1))[None]

    def caches(self, sequence: int) -> Arrays:
        """Return the KV cache of a sequence, by names such as "3.key": views [Hkv, S, head_dim]."""
        named: Arrays = {}
        for layer, (keys, values) in self._caches.items():
            named |= {f"{layer}.key": keys[sequence].swapaxes(-1, -2), f"{layer}.value": values[sequence]}
        return named

    def parts(self, sequence: int, start: int, length: int, all_logits: bool) -> list[Part]:
        """Divide a prompt into parts; see `Calls.parts`.

        With `all_logits`, parts of several positions come first. They write keys and values, but return no logits. Then
        each position is a part of its own, which returns logits.
        """
        before = self._without_logits(sequence, start, length - 1)
        if not all_logits:
            return [*before, Part(sequence, start + length - 1, 1, follows=length > 1, keep=1)]
        before = [part for part in before if part.rows > 1]
        taken_in = sum(part.length for part in before)
        steps = [Part(sequence, start + at, 1, follows=at > 0, keep=1, writes=at >= taken_in) for at in range(length)]
        return [*before, *steps]

    def _without_logits(self, sequence: int, start: int, length: int) -> list[Part]:
        parts, at = [], 0
        while at < length:
            left = length - at
            fitting = [n for n in self._lengths if n <= left]
            rows = fitting[-1] if fitting else self._lengths[0] if self._lengths and left > 1 else 1
            parts.append(Part(sequence, start + at, min(rows, left), follows=at > 0, keep=0, rows=rows))
            at += rows
        return parts

    def prepare(self, part: Part, records: Records) -> tuple[Call, Floats]:
        """Return the call for a part, and the memory for its logits [1, vocab_size]; without logits [0, vocab_size]."""
        logits = np.empty((1, self._config.vocab_size), np.float32)
        experts = self.experts.take_in(part, records)
        call = self._bind(part.rows or part.length, part.sequence, experts, logits)
        call.place(part.start, part.length, self._embeddings(records), self._rotary, part.writes)
        return call, logits[: part.keep]

    def _embeddings(self, records: Records) -> Floats:
        embeds = self._embeds.array((len(records), self._config.hidden_size))
        self._decoder.read(records, "embedding", embeds)
        return embeds

    def finish(self, sequence: int, end: int) -> None:
        """Store the experts of the last positions in the sequence's expert state."""
        self.experts.finish(sequence, end)

    def decode(self, positions: Sequence[int], going: Sequence[bool], records: Records) -> Floats:
        """Compute one position of each sequence that continues, one sequence after the other."""
        for sequence, (position, goes) in enumerate(zip(positions, going, strict=True)):
            if goes:
                record = records[sequence : sequence + 1]
                self.experts.decode(sequence, position, record)
                self._steps[sequence].place(position, 1, self._embeddings(record), self._rotary, writes=True)
                self._steps[sequence].run()
        return self._logits


class _Cache(NamedTuple):
    """The KV cache of one layer and sequence, and the new keys and values of a call."""

    keys: Floats  # [Hkv, head_dim, S]
    values: Floats  # [Hkv, S, head_dim]
    new_keys: Floats  # [Hkv, head_dim, T]
    new_values: Floats  # [Hkv, T, head_dim]


class _StaticCall:
    """A call that writes the new keys and values into the cache."""

    def __init__(self, call: Call, rows: Arrays, mask: Floats, caches: list[_Cache]) -> None:
        self._call, self._rows, self._mask, self._caches = call, rows, mask, caches  # mask: the columns for the cache
        self._start = self._length = 0
        self._writes = False

    def place(self, start: int, length: int, embeds: Floats, rotary: Arrays, writes: bool) -> None:
        """Set the positions and their inputs. Padding positions get the inputs of the last position."""
        self._start, self._length, self._writes = start, length, writes
        for name, row in self._rows.items():
            source = embeds if name == "inputs_embeds" else rotary[name][start : start + length]
            source = source.reshape(length, *row.shape[1:])
            row[:length], row[length:] = source, source[-1]

    def run(self) -> None:
        """Compute the positions. The mask hides all cached positions from `start` on."""
        start, end = self._start, self._start + self._length
        self._mask[..., :start], self._mask[..., start:] = 0, HIDDEN
        self._call.run()
        for cache in self._caches if self._writes else ():
            cache.keys[..., start:end] = cache.new_keys[..., : self._length]
            cache.values[..., start:end, :] = cache.new_values[..., : self._length, :]
