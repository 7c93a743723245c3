"""A naive export: the tables are initializers of the graph, and every step gathers all rows of the window again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir import Value
from onnxscript import GraphBuilder, OpBuilder

from benchmarks.speed import CONTEXT
from molkv_bundle import Arrays, MolkvConfig, rotary_tables
from molkv_export.families import open_checkpoint
from molkv_export.graph.build import IR_VERSION, OPSET, BuiltGraph
from molkv_export.graph.cpu import CpuModules, KVCache
from molkv_export.graph.decoder import LayerInputs, LookupExpertForCausalLM
from molkv_export.graph.initializers import attach_weights
from molkv_export.graph.linear import FLOAT32, Linear
from molkv_export.graph.molkv import MolkvMixer
from molkv_runtime import BoundCall, Target, session_options

_CHUNK = 128


def export_naively(checkpoint: Path, folder: Path) -> None:
    """Write the graph with its tables (4.6 GB) to a new folder."""
    with open_checkpoint(checkpoint) as source:
        assert isinstance(source.config, MolkvConfig)
        graph = _graph(source.config)
        attach_weights([graph], source)
        folder.mkdir(parents=True)
        ir.save(graph.model, folder / "model.onnx", external_data="model.onnx.data")


def _graph(config: MolkvConfig) -> BuiltGraph:
    graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET, "com.microsoft": 1}, name="naive")
    builder = GraphBuilder(graph)
    op = builder.op
    names = {"input_ids": "bt", "position_ids": "bt", "window_ids": "nr", "window_positions": "nr"}
    ids = {name: builder.input(name, ir.DataType.INT64, list(shape)) for name, shape in names.items()}
    mask = builder.input("expert_mask", ir.DataType.FLOAT, ["n", "c", "rn"])
    lengths = builder.input("seqlens_k", ir.DataType.INT32, ["b"])
    total = builder.input("total_sequence_length", ir.DataType.INT32, [])
    last = builder.input("logits_to_keep", ir.DataType.INT64, [1])
    positions = np.arange(config.max_position_embeddings)
    cos, sin = (
        op.builder.root.initializer(ir.tensor(table, name=name), qualify=False)
        for name, table in zip(
            ("window_cos", "window_sin"),
            rotary_tables(positions, config.expert_key_size, config.rope_theta),
            strict=True,
        )
    )
    layers = []
    for layer in range(config.num_hidden_layers):
        shape: list[int | str] = ["b", config.num_key_value_heads, "m", config.head_dim]
        past_key, past_value = (
            builder.input(f"past_key_values.{layer}.{kind}", ir.DataType.FLOAT, shape) for kind in ("key", "value")
        )
        key = _rows(op, f"keys.{layer}", config, config.expert_key_size, ids["window_ids"])
        key = op.RotaryEmbedding(
            key,
            *(ids["window_positions"], cos, sin),
            num_heads=config.num_experts,
            _domain="com.microsoft",
            _version=1,
        )
        value = _rows(op, f"values.{layer}", config, config.hidden_size, ids["window_ids"])
        key, value = (
            op.Reshape(part, op.Constant(value_ints=[0, -1, size]))
            for part, size in ((key, config.expert_key_size), (value, config.hidden_size))
        )
        cache = KVCache(past_key, past_value, lengths, total)
        values = {f"expert_key.{layer}": key, f"expert_value.{layer}": value}
        layers.append(LayerInputs(cache, {**values, "expert_mask": mask, "position_ids": ids["position_ids"]}))
    embedding = op.Cast(op.Gather(_table(op, "embedding", config, config.hidden_size), ids["input_ids"]), to=1)
    modules = CpuModules(config, FLOAT32)
    decoder = LookupExpertForCausalLM(config, modules, partial(MolkvMixer, config, modules))
    logits, presents = decoder(op, embedding, layers, last)
    builder.add_output(logits, "logits")
    for layer, pair in enumerate(presents):
        for kind, present in zip(("key", "value"), pair, strict=True):
            present.dtype = ir.DataType.FLOAT
            builder.add_output(present, f"present.{layer}.{kind}")
    logits.dtype = ir.DataType.FLOAT
    linears = {name: module for name, module in decoder.named_modules() if isinstance(module, Linear)}
    return BuiltGraph(ir.Model(graph, ir_version=IR_VERSION), (), (), linears)


def _rows(op: OpBuilder, name: str, config: MolkvConfig, size: int, ids: Value) -> Value:
    rows: Value = op.Cast(op.Gather(_table(op, name, config, config.num_experts * size), ids), to=1)
    return rows


def _table(op: OpBuilder, name: str, config: MolkvConfig, size: int) -> Value:
    shape = (config.vocab_size, size)

    def read() -> ir.TensorProtocol:
        random = np.random.default_rng(0).standard_normal((512, size), np.float32).astype(np.float16)
        return ir.Tensor(np.resize(random, shape), name=name)

    tensor = ir.LazyTensor(read, ir.DataType.FLOAT16, ir.Shape(shape), name=name)
    return op.builder.root.initializer(tensor, qualify=False)


class Naive:
    """The naive graph in ONNX Runtime, with KV caches that are allocated once."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        folder = checkpoint.parent / "naive"
        if not folder.exists():
            export_naively(checkpoint, folder)
        with open_checkpoint(checkpoint) as source:
            assert isinstance(source.config, MolkvConfig)
            self._config = c = source.config
        self.vocab_size = c.vocab_size
        options = session_options(Target(threads=threads))
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        shape = (1, c.num_key_value_heads, CONTEXT, c.head_dim)
        self._cache = {
            f"{layer}.{kind}": np.zeros(shape, np.float32)
            for layer in range(c.num_hidden_layers)
            for kind in ("key", "value")
        }
        self._ids = np.zeros(0, np.int64)

    def start(self, batch: int) -> None:
        """Start with an empty sequence."""
        if batch != 1:
            raise ValueError(f"batch is {batch}, expected 1")
        self._ids = np.zeros(0, np.int64)

    def prefill(self, ids: np.ndarray) -> None:
        """Prefill a prompt in chunks of up to 128 tokens, which are divided into blocks of the window's size."""
        for part in np.split(ids, range(_CHUNK, len(ids), _CHUNK)):
            block = self._config.expert_window
            whole = len(part) - len(part) % block
            for piece in (part[:whole], part[whole:]):
                if len(piece):
                    self._run(piece, min(block, len(piece)))

    def decode(self, token: int) -> None:
        """Decode a token."""
        self._run(np.array([token]), 1)

    def _run(self, ids: np.ndarray, block: int) -> None:
        start, window = len(self._ids), self._config.expert_window
        self._ids = np.concatenate([self._ids, ids])
        positions = np.arange(start, len(self._ids))
        seen = positions[::block, None] + np.arange(1 - window, block)  # [blocks, R]
        t = positions.reshape(-1, block, 1)
        visible = (seen[:, None] >= 0) & (seen[:, None] <= t) & (seen[:, None] > t - window)
        mask = np.where(visible, np.float32(0), np.float32(-np.inf)).repeat(self._config.num_experts, axis=-1)
        inputs: Arrays = {
            "input_ids": ids[None],
            "position_ids": positions[None],
            "window_ids": self._ids[np.maximum(seen, 0)],
            "window_positions": np.maximum(seen, 0),
            "expert_mask": mask,
            "seqlens_k": np.array([len(self._ids) - 1], np.int32),
            "total_sequence_length": np.array(len(self._ids), np.int32),
            "logits_to_keep": np.ones(1, np.int64),
            **{f"past_key_values.{name}": array for name, array in self._cache.items()},
        }
        outputs: Arrays = {"logits": np.empty((1, 1, self._config.vocab_size), np.float32)}
        BoundCall(
            self._session, inputs, {**outputs, **{f"present.{name}": array for name, array in self._cache.items()}}
        ).run()
