"""The dense graph, and its calls with bound buffers. `DynamicCalls` makes the calls of the cpu profile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from molkv_bundle import (
    Arrays,
    Bundle,
    BundleError,
    Floats,
    GraphFile,
    KVDtype,
    ModelConfig,
    Records,
    WindowDtype,
    graph_interface,
    one_line,
)
from molkv_runtime.checks import InOneProcess
from molkv_runtime.experts import ExpertState, InputFormat, Part
from molkv_runtime.families import expert_state
from molkv_runtime.onnxruntime_session import (
    CPU,
    Placement,
    Target,
    check_version,
    describe_placements,
    open_session,
    placements,
    session_options,
)
from molkv_runtime.providers import PRESETS
from molkv_runtime.record_decoder import RecordDecoder, Scratch

_TYPES = {"float32": "float", "float16": "float16", "int64": "int64", "int32": "int32", "int8": "int8"}
PREFILL_CHUNK = 128
_LOG = logging.getLogger(__name__)


class Call(Protocol):
    """A call of a graph with bound buffers. It can be run again after the contents of the buffers have changed."""

    def run(self) -> None:
        """Compute the outputs from the inputs."""


class Graph(Protocol):
    """An implementation of the dense graph."""

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers to all inputs and outputs of the graph for `length` positions (0: the graph for any number)."""


class BoundCall:
    """A call of an ONNX Runtime session on a provider.

    If the provider computes in memory of its own, ONNX Runtime copies an input to this memory when the input is bound.
    So each run then binds the inputs again.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Arrays, target: Target = CPU
    ) -> None:
        self._session = session
        self._binds_again = PRESETS[target.provider].own_memory
        self._inputs, self._outputs = inputs, outputs  # keeps the arrays alive, since ONNX Runtime stores only pointers
        self._binding = session.io_binding()
        _bind(self._binding.bind_input, inputs)
        _bind(self._binding.bind_output, outputs)

    def run(self) -> None:
        """Compute the outputs from the inputs.

        Raises:
            BundleError: The graph fails, for example because it does not accept the inputs that the manifest describes.
        """
        try:
            if self._binds_again:
                _bind(self._binding.bind_input, self._inputs)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises many exception types, none of them public
            raise BundleError(f"the dense graph fails: {one_line(error)}") from error


def _bind(bind: Callable[..., None], arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not array.flags.c_contiguous:
            raise ValueError(f"buffer {name!r} is not contiguous")
        bind(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


class DenseGraph(InOneProcess):
    """The ONNX Runtime sessions of a bundle's profile, one for each ONNX file."""

    def __init__(self, bundle: Bundle, target: Target = CPU) -> None:
        """Load the graphs.

        Args:
            bundle: The bundle.
            target: The provider that runs the graphs, and its options.

        Raises:
            ProviderError: The provider is not available, refuses a graph, or leaves nodes to other providers although
                `target.required` is set; or ONNX Runtime is older than the graphs require.
            BundleError: A graph does not have the inputs and outputs that the model's configuration requires.
            ArgumentError: There are more threads than cores, or the provider does not know an option.
        """
        super().__init__()
        check_version(bundle.graph().min_onnxruntime)
        options = session_options(target, bundle.manifest.sha256)
        files = {file.length: file for file in bundle.graph().files}
        self._target = target
        self._sessions = {}
        for length, path in bundle.graph_paths().items():
            session = open_session(path, options, target)
            _check_interface(files[length], session, path)
            self._sessions[length] = session
        if _LOG.isEnabledFor(logging.INFO):
            has_own_threads = bool(PRESETS[target.provider].threads)
            threads = target.threads or (os.cpu_count() if has_own_threads else "one per physical core")
            _LOG.info(
                "%s: profile %s, provider %s, threads %s",
                bundle.where,
                bundle.profile,
                target.provider,
                threads,
            )
            _LOG.info("%s: %s", bundle.where, describe_placements(self.placements))

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind buffers to all inputs and outputs of the graph for `length` positions (0: any number)."""
        self.check_process()
        return BoundCall(self._sessions[length], inputs, outputs, self._target)

    @property
    def placements(self) -> dict[int, list[Placement]]:
        """The providers that run the nodes, by the number of positions of a call (0: any number)."""
        return {length: placements(session) for length, session in self._sessions.items()}


def _check_interface(file: GraphFile, session: onnxruntime.InferenceSession, path: Path) -> None:
    found = session.get_inputs(), session.get_outputs()
    for kind, listed, has in zip(("inputs", "outputs"), (file.inputs, file.outputs), found, strict=True):
        if [(t.name, f"tensor({_TYPES[t.dtype]})", list(t.shape)) for t in listed] != [
            (t.name, t.type, t.shape) for t in has
        ]:
            raise BundleError(f"{path}: its {kind} differ from those in the manifest; export again")


class Calls(Protocol):
    """The calls of a graph, and the state of B sequences: KV caches and experts, in buffers that are allocated once."""

    experts: ExpertState

    def caches(self, sequence: int) -> Arrays:
        """Return the KV cache of a sequence, by names such as "3.key": views [Hkv, max_length, head_dim]."""

    def parts(self, sequence: int, start: int, length: int, all_logits: bool) -> list[Part]:
        """Divide `length` positions of a prompt, from `start` on, into parts. The parts must run in this order.

        Only the last part keeps logits: the logits of its last position. With `all_logits`, the parts together keep the
        logits of every position once, in order.
        """

    def prepare(self, part: Part, records: Records) -> tuple[Call, Floats]:
        """Return the call for a part with these records [length], and the memory [keep, V] for its logits.

        The call does not read the records. It must run before the next part is prepared.
        """

    def finish(self, sequence: int, end: int) -> None:
        """Update the state of the sequence. Call this after the parts, which end before position `end`, have run.

        Until this call, the state of the sequence is the same as before the first part.
        """

    def decode(self, positions: Sequence[int], going: Sequence[bool], records: Records) -> Floats:
        """Compute one more position of each sequence that continues.

        Args:
            positions: The new position of each sequence [B]. A sequence that does not continue keeps its state, also if
                its last position is given.
            going: Whether each sequence continues [B].
            records: The records of the new tokens [B].

        Returns:
            Logits [B, V], in a buffer that the next step overwrites.
        """


class DynamicCalls:
    """The `Calls` of the cpu profile's graph. Its past and present KV caches are the same memory."""

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        kv_dtype: KVDtype,
        batch_size: int,
        max_length: int,
        prefill_chunk: int | None,
        window_dtype: WindowDtype,
        decoder: RecordDecoder,
    ) -> None:
        self._config, self._graph, self._decoder = config, graph, decoder
        self._prefill_chunk = prefill_chunk or PREFILL_CHUNK
        self._last = max_length - 1
        self.experts = expert_state(config, batch_size, max_length, InputFormat(window_dtype=window_dtype), decoder)
        self._reads_positions = any(tensor.name == "position_ids" for tensor in graph_interface(config, kv_dtype)[0])
        self._cache = {
            f"{layer}.{kind}": np.zeros((batch_size, heads, max_length, head_dim), kv_dtype)
            for layer, heads, head_dim in config.kv_caches()
            for kind in ("key", "value")
        }
        self._shared_caches = config.shared_kv_caches()
        self._embeds = np.zeros((batch_size, 1, config.hidden_size), np.float32)
        self._prompt_embeds = Scratch(np.float32)
        self._positions = np.zeros((batch_size, 1), np.int64)
        self._seqlens = np.zeros(batch_size, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.zeros((batch_size, 1, config.vocab_size), np.float32)
        self._decode_call = self._bind_decode()

    def _bind_decode(self) -> Call:
        inputs: Arrays = {
            "inputs_embeds": self._embeds,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            "logits_to_keep": np.ones(1, np.int64),
            **self.experts.decode_inputs,
        }
        if self._reads_positions:
            inputs["position_ids"] = self._positions
        return self._bind(inputs, self._logits, slice(None))

    def _bind(self, inputs: Arrays, logits: Floats, rows: slice) -> Call:
        # Past and present share memory, so the graph writes the new keys and values in place.
        cache = {name: array[rows] for name, array in self._cache.items()}
        past = {f"past_key_values.{name}": array for name, array in cache.items()}
        again = {
            f"{layer}.{kind}": cache[f"{source}.{kind}"]
            for layer, source in self._shared_caches.items()
            for kind in ("key", "value")
        }
        present = {f"present.{name}": array for name, array in {**cache, **again}.items()}
        return self._graph.bind(0, {**inputs, **past}, {"logits": logits, **present})

    def caches(self, sequence: int) -> Arrays:
        """Return the KV cache of a sequence, by names such as "3.key": views [Hkv, max_length, head_dim]."""
        return {name: array[sequence] for name, array in self._cache.items()}

    def parts(self, sequence: int, start: int, length: int, all_logits: bool) -> list[Part]:
        """Divide a prompt into parts of at most `prefill_chunk` positions, without padding.

        If the largest part is longer than a block, all parts but the last one are multiples of the block length.
        """
        block, size = self.experts.block_length, self._prefill_chunk
        if size <= block:
            starts = list(range(0, length, size))
        else:
            whole = length - length % block
            starts = [*range(0, whole, size - size % block), whole]
        parts = []
        for at, end in zip(starts, [*starts[1:], length], strict=True):
            if at < end:
                # The LM head is a large part of the work, and only the last logits of a prompt are usually needed.
                keep = end - at if all_logits else int(end == length)
                parts.append(Part(sequence, start + at, end - at, follows=at > 0, keep=keep))
        return parts

    def prepare(self, part: Part, records: Records) -> tuple[Call, Floats]:
        """Return the call for a part, and the memory for its last logits [keep, vocab_size]."""
        end = part.start + part.length
        logits = np.empty((1, part.keep, self._config.vocab_size), np.float32)
        embeds = self._prompt_embeds.array((1, part.length, self._config.hidden_size))
        self._decoder.read(records, "embedding", embeds[0])
        inputs: Arrays = {
            "inputs_embeds": embeds,
            "seqlens_k": np.array([end - 1], np.int32),
            "total_sequence_length": np.array(end, np.int32),
            "logits_to_keep": np.array([part.keep], np.int64),
            **self.experts.take_in(part, records),
        }
        if self._reads_positions:
            inputs["position_ids"] = np.arange(part.start, end)[None]
        return self._bind(inputs, logits, slice(part.sequence, part.sequence + 1)), logits[0]

    def finish(self, sequence: int, end: int) -> None:
        """Store the experts of the last positions in the sequence's expert state."""
        self.experts.finish(sequence, end)

    def decode(self, positions: Sequence[int], going: Sequence[bool], records: Records) -> Floats:
        """Compute one position of every sequence. The logits of sequences that do not continue have no meaning.

        The graph computes the sequences that do not continue, too, and overwrites a slot of their caches. The slot is
        after their last token, except in a full sequence, which gets its last slot back.
        """
        full = [at for at, goes in enumerate(going) if not goes and positions[at] == self._last]
        last = {name: array[full, :, self._last] for name, array in self._cache.items()} if full else {}
        self._decoder.read(records, "embedding", self._embeds[:, 0])
        longest = 0
        for sequence, position in enumerate(positions):
            self.experts.decode(sequence, position, records[sequence : sequence + 1])
            self._positions[sequence, 0] = self._seqlens[sequence] = position
            longest = max(longest, position + 1)
        self._total[...] = longest
        try:
            self._decode_call.run()
        finally:
            for name, numbers in last.items():
                self._cache[name][full, :, self._last] = numbers
        return self._logits[:, 0]
