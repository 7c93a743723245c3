"""`python -m benchmarks.products`: the time of one matrix product, for each way to store its weight.

The weight has the size 768 x 3072, as in MoLE-160M. The benchmark uses all cores, and more weights than fit into the
caches. ONNX Runtime's `DynamicQuantizeMatMul` and 8-bit blocks are included for comparison; the layers of bundles do
not use them.
"""

from __future__ import annotations

import os
import statistics
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir import Value
from onnxscript import GraphBuilder, OpBuilder

from molkv_export.graph.build import IR_VERSION, OPSET
from molkv_export.graph.linear import BlockwiseLinear, HalfLinear, Linear, RowwiseInt8Linear
from molkv_runtime import Target, session_options

_SIZE = 768, 3072
_BYTES = 64 * 1024**2  # size of all copies of a weight: more than fits into the caches
_LENGTHS = {1: 20, 8: 10, 256: 3}  # number of positions: number of runs
_ROUNDS = 5


class _DynamicLinear(RowwiseInt8Linear):
    """A product by `DynamicQuantizeMatMul`, with one scale for all activations of a call."""

    def forward(self, op: OpBuilder, x: Value) -> Value:
        product: Value = op.DynamicQuantizeMatMul(
            x, self.weight, self.weight_scale, _domain="com.microsoft", _version=1
        )
        return product


def main() -> None:
    """Print a row for each way to store the weight."""
    ways: dict[str, type[Linear] | tuple[int, int]] = {
        "float32": Linear,
        "float16": HalfLinear,
        "int8, one scale for each column": RowwiseInt8Linear,
        "int8, DynamicQuantizeMatMul": _DynamicLinear,
        "int8 in blocks of 32": (8, 32),
        "int8 in blocks of 128": (8, 128),
        "int4 in blocks of 16": (4, 16),
        "int4 in blocks of 32": (4, 32),
        "int4 in blocks of 64": (4, 64),
        "int4 in blocks of 128": (4, 128),
        "int4 in blocks of 256": (4, 256),
    }
    weight = np.random.default_rng(0).standard_normal(_SIZE, np.float32)
    contenders = {name: _Contender(way, weight) for name, way in ways.items()}
    for _ in range(_ROUNDS):  # contenders take turns, so that other load on the machine affects all of them
        for contender in contenders.values():
            contender.measure()
    print(f"{os.cpu_count()} threads\n\n| | 1 position, us | GB/s | 8 positions, us | 256 positions, us | GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for name, contender in contenders.items():
        one, eight, many = (statistics.median(contender.times[length]) for length in _LENGTHS)
        print(
            f"| {name} | {1e6 * one:.0f} | {contender.size / one / 1e9:.1f} | {1e6 * eight:.0f} "
            f"| {1e6 * many:.0f} | {2 * 256 * weight.size / many / 1e9:.0f} |"
        )


class _Contender:
    """A graph with many products of the same x, each with its own weight."""

    def __init__(self, way: type[Linear] | tuple[int, int], weight: np.ndarray) -> None:
        parts = self._linear(way).encode(weight)
        self.size = sum(array.nbytes for array in parts.values())
        self._count = max(8, _BYTES // self.size)
        graph = ir.Graph((), (), nodes=(), opset_imports={"": OPSET, "com.microsoft": 1}, name="products")
        builder = GraphBuilder(graph)
        x = builder.input("x", ir.DataType.FLOAT, ["n", _SIZE[0]])
        products: list[Value] = []
        for index in range(self._count):
            linear = self._linear(way)
            for name, parameter in linear.named_parameters():
                parameter.name = f"{name}.{index}"
            products.append(linear(builder.op, x))
        total = builder.op.Sum(*products)
        total.dtype, total.shape = ir.DataType.FLOAT, ir.Shape(["n", _SIZE[1]])
        builder.add_output(total, "y")
        for name, value in graph.initializers.items():
            if value.const_value is None:
                part, _, number = name.rpartition(".")
                array = parts[part].copy()
                array.flat[0] = int(number)  # makes copies different: ONNX Runtime computes equal products only once
                value.const_value = ir.tensor(array, name=name)
        model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, session_options(Target(threads=os.cpu_count())))
        self.times: dict[int, list[float]] = {length: [] for length in _LENGTHS}

    @staticmethod
    def _linear(way: type[Linear] | tuple[int, int]) -> Linear:
        return way(*_SIZE) if isinstance(way, type) else BlockwiseLinear(*_SIZE, *way)

    def measure(self) -> None:
        """Measure, and add the median seconds of one product to `times`, for each number of positions."""
        for length, runs in _LENGTHS.items():
            feed = {"x": np.random.default_rng(1).standard_normal((length, _SIZE[0]), np.float32)}
            times = []
            for _ in range(runs + 2):
                start = time.perf_counter()
                self._session.run(None, feed)
                times.append(time.perf_counter() - start)
            self.times[length].append(statistics.median(times[2:]) / self._count)


main()
