"""The dense graph in an ONNX Runtime session, run on bound buffers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from molkv_runtime import providers
from molkv_runtime.bundle import Bundle
from molkv_runtime.errors import BundleError, ProviderError, RequestError
from molkv_runtime.graph_file import check_graph_file
from molkv_runtime.interface import graph_inputs, graph_outputs
from molkv_runtime.manifest import GraphInfo

Arrays = dict[str, npt.NDArray[np.generic]]


class Call(Protocol):
    """One call of a graph with all its buffers; it can be repeated after their contents have changed."""

    def run(self) -> None:
        """Compute the outputs from the inputs."""


class Graph(Protocol):
    """What computes the dense graph."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers to all inputs and outputs."""


class BoundCall:
    """A call of an ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Arrays) -> None:
        self._session = session
        self._buffers = (inputs, outputs)  # ONNX Runtime holds bare pointers: keep the arrays alive
        self._binding = session.io_binding()
        for bind, arrays in ((self._binding.bind_input, inputs), (self._binding.bind_output, outputs)):
            for name, array in arrays.items():
                if not array.flags.c_contiguous:
                    raise ValueError(f"buffer {name!r} is not contiguous")
                bind(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

    def run(self) -> None:
        """Compute the outputs from the inputs.

        Raises:
            BundleError: The graph does not take what the manifest says that it takes.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises many kinds, none of them public
            raise BundleError(f"the dense graph fails: {one_line(error)}") from error


class DenseGraph:
    """A session over a bundle's graph."""

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int | None = None) -> None:
        """Load the graph.

        Args:
            bundle: Where the graph is.
            provider: A preset of `providers.PRESETS`.
            threads: Threads inside an operator; None leaves it to ONNX Runtime (one per physical core).

        Raises:
            ProviderError: The provider is not there or refuses the graph.
            BundleError: The graph does not have the inputs and outputs that its configuration calls for.
            RequestError: More threads than the machine has cores.
        """
        options = session_options(provider, threads)
        info = bundle.graph()
        path = bundle.file(info.file)
        check_graph_file(path, bundle.file(info.data).name)
        name = providers.resolve(provider)
        try:
            # By path, not by bytes: external data is then mapped instead of copied.
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[name])
        except Exception as error:
            raise ProviderError(f"{path}: provider {provider!r} cannot load it: {one_line(error)}") from error
        _check_interface(bundle, info, self._session, path)

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind buffers to all inputs and outputs."""
        return BoundCall(self._session, inputs, outputs)


def session_options(provider: str, threads: int | None = None) -> onnxruntime.SessionOptions:
    """Make the options of a session; arguments and errors as for `DenseGraph`."""
    cores = os.cpu_count() or 1
    if threads is not None and not 0 < threads <= cores:
        raise RequestError(f"threads is {threads}, expected 1 to {cores} (the cores of this machine)")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.intra_op_num_threads = threads or 0
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)", "int8": "tensor(int8)"}


def _check_interface(bundle: Bundle, info: GraphInfo, session: onnxruntime.InferenceSession, path: Path) -> None:
    for kind, listed, wanted, found in (
        ("inputs", info.inputs, graph_inputs(bundle.config, info.kv_dtype), session.get_inputs()),
        ("outputs", info.outputs, graph_outputs(bundle.config, info.kv_dtype), session.get_outputs()),
    ):
        if listed != wanted:
            raise BundleError(
                f"{path}: its {kind} in the manifest are not those that the model's configuration calls for"
            )
        if [(t.name, _TYPES[t.dtype], list(t.shape)) for t in listed] != [(t.name, t.type, t.shape) for t in found]:
            raise BundleError(f"{path}: its {kind} are not those in the manifest; export again")


def one_line(error: Exception) -> str:
    """Give the message of a library's error in one line, its start if it is long."""
    return " ".join(str(error).split())[:300]
