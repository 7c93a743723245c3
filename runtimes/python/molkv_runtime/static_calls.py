"""Calls of a static profile's graphs: one sequence, a fixed number of positions, a cache that the host writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from molkv_bundle import HIDDEN, Arrays, Floats, KVDtype, ModelConfig, Records, graph_interface, rotary_tables
from molkv_runtime.dense_graph import Call, Graph
from molkv_runtime.dynamic_calls import with_embeddings
from molkv_runtime.experts import expert_state
from molkv_runtime.window import InputFormat, Part


class StaticCalls:
    """The `Calls` of a graph for one position, which gives logits, and of graphs for more, which give none.

    So a prompt's last token is a call of its own. Those before it are taken in by the longest graphs that they fill;
    for what is left, the shortest that holds it is padded.
    """

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        kv_dtype: KVDtype,
        batch_size: int,
        lengths: Sequence[int],
        prefill_chunk: int | None,
    ) -> None:
        self._config, self._graph = config, graph
        self._lengths = [length for length in lengths if 1 < length <= (prefill_chunk or length)]
        self._dtype: npt.DTypeLike = kv_dtype
        self._interfaces = {length: graph_interface(config, kv_dtype, length) for length in lengths}
        context = config.max_position_embeddings
        self._experts = expert_state(config, batch_size, context, InputFormat(self._dtype, HIDDEN))
        heads = (config.num_hidden_layers, config.num_key_value_heads)
        self._keys = np.zeros((batch_size, *heads, config.head_dim, context), self._dtype)
        self._values = np.zeros((batch_size, *heads, context, config.head_dim), self._dtype)
        self._rotary = self._rotary_rows("rotary", config.head_dim)
        if config.has_keys and config.expert_rope:
            self._rotary |= self._rotary_rows("expert_rotary", config.expert_key_size)
        self._logits = np.zeros((batch_size, config.vocab_size), np.float32)
        self._steps = [self._decode_call(sequence) for sequence in range(batch_size)]

    def _rotary_rows(self, name: str, size: int) -> Arrays:
        """Make cos and sin of all positions, over both halves: x * cos + (second, first) * sin is the rotation."""
        cos, sin = rotary_tables(np.arange(self._config.max_position_embeddings), size, self._config.rope_theta)
        both = {"cos": np.concatenate([cos, cos], axis=-1), "sin": np.concatenate([-sin, sin], axis=-1)}
        return {f"{name}_{function}": rows.astype(self._dtype) for function, rows in both.items()}

    def _decode_call(self, sequence: int) -> _StaticCall:
        experts = {name: array[sequence : sequence + 1] for name, array in self._experts.decode_inputs.items()}
        return self._bind(1, sequence, experts, self._logits[sequence : sequence + 1])

    def _bind(self, length: int, sequence: int, experts: Arrays, logits: Floats) -> _StaticCall:
        config, (inputs, outputs) = self._config, self._interfaces[length]
        if not config.has_keys:
            experts = {name: array[0] for name, array in experts.items()}
        keys = np.zeros((*self._keys.shape[1:-1], length), self._dtype)
        values = np.zeros((*self._values.shape[1:3], length, config.head_dim), self._dtype)
        names = [(layer, f"{layer}.key", f"{layer}.value") for layer in range(config.num_hidden_layers)]
        mask = self._causal_mask(length)
        known: Arrays = {"attention_mask": mask, "logits": logits, **experts}
        for layer, key, value in names:
            known[f"past_key_values.{key}"] = self._keys[sequence, layer]
            known[f"past_key_values.{value}"] = self._values[sequence, layer]
            known[f"present.{key}"], known[f"present.{value}"] = keys[layer], values[layer]
        rows: Arrays = {
            tensor.name: np.zeros([int(size) for size in tensor.shape], self._dtype)
            for tensor in inputs
            if tensor.name not in known
        }
        bound = [{tensor.name: {**known, **rows}[tensor.name] for tensor in tensors} for tensors in (inputs, outputs)]
        call = self._graph.bind(*bound)
        return _StaticCall(
            call, rows, mask[..., :-length], (self._keys[sequence], keys), (self._values[sequence], values)
        )

    def _causal_mask(self, length: int) -> Floats:
        """Make the mask [1, G*T, S+T] of which nothing in the cache is seen; it hides padding, which comes last."""
        config = self._config
        mask = np.full((length, config.max_position_embeddings + length), HIDDEN, self._dtype)
        mask[:, -length:] = np.triu(mask[:, -length:], k=1)
        return np.tile(mask, (config.num_attention_heads // config.num_key_value_heads, 1))[None]

    def parts(self, sequence: int, start: int, length: int, all_logits: bool) -> list[Part]:
        """Cut a prompt; with all_logits each position is asked for them behind the keys and values of the others."""
        before = self._without_logits(sequence, start, length - 1)
        if not all_logits:
            return [*before, Part(sequence, start + length - 1, 1, follows=length > 1, keep=1)]
        before = [part for part in before if part.computed > 1]
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

    def prepare(self, part: Part, groups: Iterable[Records]) -> tuple[Call, Floats]:
        """Make the call for a part, and the memory for its logits [1, vocab_size], or [0, vocab_size]."""
        logits = np.empty((1, self._config.vocab_size), np.float32)
        embeds = np.zeros((part.length, self._config.hidden_size), np.float32)
        experts = self._experts.prefill(part, with_embeddings(groups, embeds))
        call = self._bind(part.computed, part.sequence, experts, logits)
        call.place(part.start, part.length, embeds, self._rotary, part.writes)
        return call, logits[: part.keep]

    def finish(self, sequence: int, end: int) -> None:
        """Enter the experts of the last positions into the ring."""
        self._experts.finish(sequence, end)

    def decode(self, positions: Sequence[int], going: Sequence[bool], records: Records) -> Floats:
        """Compute one position of the sequences that go on, one after the other."""
        for sequence, (position, goes) in enumerate(zip(positions, going, strict=True)):
            if goes:
                record = records[sequence : sequence + 1]
                self._experts.decode(sequence, position, record)
                self._steps[sequence].place(position, 1, record["embedding"], self._rotary, writes=True)
                self._steps[sequence].run()
        return self._logits


class _StaticCall:
    """A call that writes the new keys and values into the cache."""

    def __init__(
        self, call: Call, rows: Arrays, mask: Floats, keys: tuple[Floats, Floats], values: tuple[Floats, Floats]
    ) -> None:
        self._call, self._rows, self._mask = call, rows, mask  # the mask of the cache
        self._keys, self._values = keys, values  # cache and new ones
        self._start = self._length = 0
        self._writes = False

    def place(self, start: int, length: int, embeds: Floats, rotary: Arrays, writes: bool) -> None:
        """Set the positions; those that the graph computes beyond them repeat the last one's token."""
        self._start, self._length, self._writes = start, length, writes
        for name, row in self._rows.items():
            source = embeds if name == "inputs_embeds" else rotary[name][start : start + length]
            source = source.reshape(length, *row.shape[1:])
            row[:length], row[length:] = source, source[-1]

    def run(self) -> None:
        """Compute; what the cache holds beyond the positions before these is not seen."""
        start, end = self._start, self._start + self._length
        self._mask[..., :start], self._mask[..., start:] = 0, HIDDEN
        self._call.run()
        if self._writes:
            (keys, new_keys), (values, new_values) = self._keys, self._values
            keys[..., start:end] = new_keys[..., : self._length]
            values[..., start:end, :] = new_values[..., : self._length, :]
