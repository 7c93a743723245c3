"""Writing and loading a profile's graphs: an ONNX file for each length of a call, and one file with all weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxscript
from onnx import numpy_helper

from molkv_bundle import GOLDEN, Bundle, BundleError, GraphFile, GraphInfo
from molkv_export import __version__
from molkv_export.checkpoints import Checkpoint
from molkv_export.graph.build import BuiltGraph, GraphPlan
from molkv_export.graph.choices import MIN_ONNXRUNTIME, MIN_ONNXRUNTIME_OF_INT8_KV
from molkv_export.graph.initializers import attach_weights

_CACHE_KEY = (
    "COREML_CACHE_KEY"  # metadata that identifies a model in the CoreML provider's cache; at most 64 characters
)


def save_graphs(
    plan: GraphPlan,
    source: Checkpoint,
    folder: Path,
    *,
    scales: dict[str, npt.NDArray[Any]],
    hashes: dict[str, str],
    advance: Callable[[int], object],
) -> GraphInfo:
    """Write the graphs of a profile and their weights.

    Args:
        plan: The graphs.
        source: The checkpoint with the weights.
        folder: The folder of the new files.
        scales: Calibrated scales and zero points, by the initializer's name. Names that no graph has are ignored.
        hashes: SHA-256 of the checkpoint's files, by name.
        advance: Called with the number of bytes of weights that were written since the last call.

    Returns:
        The description of the graphs for the manifest.
    """
    infix = "" if plan.profile == "cpu" else f".{plan.profile}"
    data = f"model{infix}.data" if infix else "model.onnx.data"
    attach_weights(plan.graphs.values(), source, scales)
    files, stored = [], None
    for length, graph in sorted(plan.graphs.items()):
        name = f"model{infix}.{length}.onnx" if length else f"model{infix}.onnx"
        if length:
            graph.model.metadata_props[_CACHE_KEY] = _cache_key(plan, length, hashes)
        if stored is None:
            _save(graph, folder / name, data, advance)
            stored = _stored(folder / name)
        else:
            _share(graph, stored)
            ir.save(graph.model, folder / name)
        files.append(GraphFile(file=name, length=length, inputs=graph.inputs, outputs=graph.outputs))
    return GraphInfo(
        files=tuple(files),
        data=data,
        golden=GOLDEN if not infix else f"golden{infix}.safetensors",
        dense_dtype=plan.dense.dtype,
        kv_dtype=plan.dense.kv_dtype,
        window_dtype=plan.dense.window_dtype,
        block_size=plan.dense.block_size if plan.dense.dtype == "int4" else 0,
        context_length=plan.config.max_position_embeddings,
        expert_window=plan.config.expert_window,
        min_onnxruntime=MIN_ONNXRUNTIME_OF_INT8_KV if plan.dense.kv_dtype == "int8" else MIN_ONNXRUNTIME[plan.profile],
    )


def _save(graph: BuiltGraph, path: Path, data: str, advance: Callable[[int], object]) -> None:
    def report(tensor: ir.TensorProtocol, _info: ir.external_data.CallbackInfo) -> None:
        advance(tensor.nbytes)

    try:
        ir.save(graph.model, path, external_data=data, callback=report)
    except ir.serde.SerdeError as error:
        raise _root_cause(error) from None
    for name in (path.name, data):
        (path.parent / name).chmod(0o644)  # onnx_ir creates external data with mode 0600


def _stored(path: Path) -> dict[str, ir.TensorProtocol]:
    """Return the weights of a graph that are stored outside its file, by name."""
    values = ir.load(path).graph.initializers.values()
    tensors = [value.const_value for value in values if isinstance(value.const_value, ir.ExternalTensor)]
    return {tensor.name: tensor for tensor in tensors if tensor.name is not None}


def _share(graph: BuiltGraph, stored: dict[str, ir.TensorProtocol]) -> None:
    """Make a graph refer to the weights that another graph has stored."""
    for name, value in graph.model.graph.initializers.items():
        if name in stored:
            value.const_value = stored[name]


def _cache_key(plan: GraphPlan, length: int, hashes: dict[str, str]) -> str:
    versions = [__version__, ir.__version__, onnxscript.__version__]
    fields = ", ".join(f"{name}={value!r}" for name, value in msgspec.structs.asdict(plan.config).items())
    decides = [
        plan.profile,
        f"ModelConfig({fields})",
        repr(plan.dense),
        str(length),
        *sorted(hashes.values()),
        *versions,
    ]
    return hashlib.sha256("\n".join(decides).encode()).hexdigest()[:40]


def _root_cause(error: BaseException) -> BaseException:
    """Return the original error: onnx_ir reads small tensors while it writes a graph, and wraps errors of the reads."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def load_graphs(bundle: Bundle) -> dict[int, onnx.ModelProto]:
    """Check a profile's graphs and return them by the length of a call. Weights are not loaded.

    Raises:
        BundleError: A file is damaged.
    """
    paths, name = bundle.graph_paths(), weights_file(bundle).name
    graphs = {length: onnx.load(path, load_external_data=False) for length, path in paths.items()}
    for graph in graphs.values():
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
    return graphs


def weights_file(bundle: Bundle) -> Path:
    """Return the file with the weights of the graphs of `load_graphs`; links are resolved, since ONNX refuses them."""
    return (bundle.path / bundle.graph().data).resolve()


def read_initializer(tensor: onnx.TensorProto, path: Path) -> npt.NDArray[Any]:
    """Read an initializer of a graph of `load_graphs`; `path` is the file with its weights.

    Raises:
        BundleError: The file of weights is damaged.
    """
    try:
        return numpy_helper.to_array(tensor, str(path.parent))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {tensor.name} cannot be read ({error})") from error
