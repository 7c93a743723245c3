"""The graph that ONNX Runtime passes to a provider, after its own optimizations."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from molkv_bundle import ProviderError, one_line

# The CPU provider has no kernels for float16: for this provider, ONNX Runtime would add a Cast around every node and
# decompose Softmax. For CoreML, whose provider has kernels for float16, ONNX Runtime does neither. So before a graph in
# float16 is optimized, float16 is replaced by float32, and float32 by float64. The result gets the old dtypes again.
_UP = {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.FLOAT: ir.DataType.DOUBLE}
_DOWN = {wide: narrow for narrow, wide in _UP.items()}
_SAME: dict[ir.DataType, ir.DataType] = {}

_SMALL = 1024  # bytes; optimizers read values only of tensors up to this size (shapes, axes, scalars)
_ZEROS = "zeros"


def optimized_graph(model_path: Path, disabled_optimizers: list[str]) -> onnx.ModelProto:
    """Return a graph after ONNX Runtime's basic optimizations, which run before a provider gets the graph.

    The weights are not read; the result has the shapes of the weights, but no values.

    Args:
        model_path: The graph's file.
        disabled_optimizers: Names of ONNX Runtime's optimizers that must not run.

    Raises:
        ProviderError: ONNX Runtime refuses the graph.
    """
    with TemporaryDirectory(prefix="molkv-lint-") as name:
        folder = Path(name)
        model = ir.load(model_path)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        halves = ir.DataType.FLOAT16 in {value.dtype for value in _values(model.graph)}
        _leave_out_weights(model.graph, folder, _UP if halves else _SAME)
        _change_types(model.graph, _UP if halves else _SAME)
        ir.save(model, folder / "model.onnx")
        try:
            _optimize(folder / "model.onnx", folder / "optimized.onnx", disabled_optimizers)
        except Exception as error:  # ONNX Runtime's exception classes are not public
            raise ProviderError(f"{model_path}: ONNX Runtime refuses the graph: {one_line(error)}") from error
        optimized = ir.from_proto(onnx.load(folder / "optimized.onnx", load_external_data=False))
        _change_types(optimized.graph, _DOWN if halves else _SAME)
        return ir.to_proto(optimized)


def _optimize(source: Path, target: Path, disabled_optimizers: list[str]) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # hides a warning that the optimized graph is for this machine only
    for key, value in {
        "optimization.disable_specified_optimizers": ";".join(disabled_optimizers),
        "session.optimized_model_external_initializers_file_name": target.with_suffix(".data").name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALL),
        "session.disable_prepacking": "1",
    }.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _values(graph: ir.Graph) -> list[ir.Value]:
    computed = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *computed]


def _leave_out_weights(graph: ir.Graph, folder: Path, types: dict[ir.DataType, ir.DataType]) -> None:
    """Replace all weights by references to one sparse file of zeros, which takes no space on disk."""
    largest = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= _SMALL:
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy().copy(), tensor.dtype, name=value.name)
            continue
        dtype = types.get(tensor.dtype, tensor.dtype)
        size = tensor.size * dtype.bitwidth // 8
        value.const_value = ir.ExternalTensor(
            _ZEROS, 0, size, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or "", base_dir=folder
        )
        largest = max(largest, size)
    with (folder / _ZEROS).open("wb") as file:
        file.truncate(largest)


def _change_types(graph: ir.Graph, types: dict[ir.DataType, ir.DataType]) -> None:
    """Replace dtypes in a graph, of values and of Cast nodes; `types` maps old dtypes to new ones."""
    for value in _values(graph):
        if value.dtype in types:
            value.dtype = types[value.dtype]
        value.const_value = _changed(value.const_value, types)
    for node in graph:
        to = node.attributes.get_int("to", 0)
        if to in types:
            node.attributes["to"] = ir.AttrInt64("to", types[ir.DataType(to)])


def _changed(tensor: ir.TensorProtocol | None, types: dict[ir.DataType, ir.DataType]) -> ir.TensorProtocol | None:
    if tensor is None or tensor.dtype not in types:
        return tensor
    dtype = types[tensor.dtype]
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.size * dtype.bitwidth // 8,
            dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=tensor.base_dir,
        )
    return ir.tensor(tensor.numpy().astype(dtype.numpy()), dtype, name=tensor.name)
