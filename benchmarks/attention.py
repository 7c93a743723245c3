"""`python -m benchmarks.attention`: the time of GroupQueryAttention for each dtype of the KV cache.

The layer has 12 heads of size 64, as in MoLE-160M. The benchmark uses all cores. Bundles have no float16 cache in
profile cpu; the operator then takes queries, keys and values in float16, so the graph also converts its input and
output.
"""

from __future__ import annotations

import os
import statistics
import time

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxscript import GraphBuilder

from molkv_export.graph.build import IR_VERSION, OPSET
from molkv_export.graph.cpu import INT8_CACHE
from molkv_runtime import Target, session_options

_HEADS, _SIZE, _SLOTS = 12, 64, 1024
_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
# Sequences, positions of the call, and length of each sequence after the call: number of calls of a measurement.
_CASES = {
    (1, 1, 512): 200,
    (1, 1, 1024): 100,
    (8, 1, 512): 30,
    (1, 128, 128): 20,
    (1, 128, 512): 10,
    (1, 128, 1024): 5,
}
_ROUNDS = 5


def main() -> None:
    """Print a row for each case."""
    layers = {dtype: _Layer(dtype) for dtype in _DTYPES}
    print(f"{os.cpu_count()} threads; microseconds of one layer, and speed / speed of float32\n")
    print(f"| sequences, positions of a call, context | {' | '.join(layers)} |\n|---|---|---|---|")
    for case, calls in _CASES.items():
        times: dict[str, list[float]] = {dtype: [] for dtype in layers}
        for _ in range(_ROUNDS):  # dtypes take turns, so that other load on the machine affects all of them
            for dtype, layer in layers.items():
                times[dtype].append(layer.seconds(*case, calls))
        found = {dtype: statistics.median(each) for dtype, each in times.items()}
        cells = [f"{1e6 * each:.0f}, x {found['float32'] / each:.2f}" for each in found.values()]
        print(f"| {', '.join(map(str, case))} | {' | '.join(cells)} |")


class _Layer:
    """A graph of one attention layer, whose cache stays in the same memory."""

    def __init__(self, dtype: str) -> None:
        graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET, "com.microsoft": 1}, name="attention")
        builder = GraphBuilder(graph)
        op, cache = builder.op, ir.Shape(["batch", _HEADS, _SLOTS, _SIZE])
        packed = builder.input("qkv", ir.DataType.FLOAT, ["batch", "length", 3 * _HEADS * _SIZE])
        past = [builder.input(f"past_{name}", _DTYPES[dtype], cache) for name in ("key", "value")]
        lengths = builder.input("seqlens_k", ir.DataType.INT32, ["batch"])
        total = builder.input("total_sequence_length", ir.DataType.INT32, [])
        computed = np.float16 if dtype == "float16" else np.float32
        angles = np.arange(_SLOTS)[:, None] / 10_000 ** (np.arange(_SIZE // 2) / (_SIZE // 2))
        rotary = [
            builder.initializer(ir.tensor(table.astype(computed), name=name))
            for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles)))
        ]
        scales: list[ir.Value] = []
        if dtype == "int8":
            steps = np.full((1, _HEADS, 1, _SIZE), 1 / 32, np.float32)
            scales = [builder.initializer(ir.tensor(steps, name=name)) for name in ("k_scale", "v_scale")]
        if dtype == "float16":
            packed = op.Cast(packed, to=ir.DataType.FLOAT16)
        out, *present = op.GroupQueryAttention(
            *(packed, None, None, *past, lengths, total, *rotary),
            *((None, None, None, *scales) if scales else ()),
            num_heads=_HEADS,
            kv_num_heads=_HEADS,
            do_rotary=1,
            **(INT8_CACHE if scales else {}),
            _domain="com.microsoft",
            _version=1,
            _outputs=3,
        )
        if dtype == "float16":
            out = op.Cast(out, to=ir.DataType.FLOAT)
        for name, value in (("out", out), ("key", present[0]), ("value", present[1])):
            value.dtype = ir.DataType.FLOAT if name == "out" else _DTYPES[dtype]
            value.shape = ir.Shape(["batch", "length", _HEADS * _SIZE]) if name == "out" else cache
            builder.add_output(value, name)
        model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, session_options(Target(threads=os.cpu_count())))
        self._cache_dtype: npt.DTypeLike = _DTYPES[dtype].numpy()
        self._step = 32 if dtype == "int8" else 1  # codes for one standard deviation

    def seconds(self, batch: int, length: int, context: int, calls: int) -> float:
        """Return the median seconds of some calls for `length` positions, the last of them at `context`."""
        generator = np.random.default_rng(0)
        binding = self._session.io_binding()
        binding.bind_cpu_input("qkv", generator.standard_normal((batch, length, 3 * _HEADS * _SIZE), np.float32))
        for name in ("key", "value"):
            numbers = generator.standard_normal((batch, _HEADS, _SLOTS, _SIZE), np.float32) * self._step
            cache = onnxruntime.OrtValue.ortvalue_from_numpy(numbers.astype(self._cache_dtype))
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(name, cache)
        binding.bind_cpu_input("seqlens_k", np.full(batch, context - 1, np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(context, np.int32))
        binding.bind_output("out")
        times = []
        for _ in range(calls + 2):
            start = time.perf_counter()
            self._session.run_with_iobinding(binding)
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])


main()
