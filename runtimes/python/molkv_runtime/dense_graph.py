"""The dense graph in ONNX Runtime sessions, run on bound buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import onnxruntime

from molkv_bundle import Arrays, Bundle, BundleError, GraphFile, for_call, one_line
from molkv_runtime.process import InOneProcess
from molkv_runtime.session import CPU, Placement, Target, open_session, placements, session_options


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


class DenseGraph(InOneProcess):
    """Sessions over the graphs of a bundle's profile, one for each length of a call."""

    def __init__(self, bundle: Bundle, target: Target = CPU) -> None:
        """Load the graphs.

        Args:
            bundle: Where they are.
            target: Where they are to run.

        Raises:
            ProviderError: The provider is not there, refuses a graph, or leaves nodes to others and must not.
            BundleError: A graph does not have the inputs and outputs that its configuration calls for.
            RequestError: There are more threads than cores, or the provider does not know an option.
        """
        super().__init__()
        options = session_options(target, bundle.manifest.sha256)
        files = {file.length: file for file in bundle.graph().files}
        self._sessions = {}
        for length, path in bundle.graph_paths().items():
            session = open_session(path, options, target)
            _check_interface(files[length], session, path)
            self._sessions[length] = session

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind buffers to all inputs and outputs of the graph for as many positions as there are embeddings."""
        self.check_process()
        return BoundCall(for_call(self._sessions, inputs), inputs, outputs)

    @property
    def placements(self) -> dict[int, list[Placement]]:
        """Where the nodes run, by the length of a call; 0 is any."""
        return {length: placements(session) for length, session in self._sessions.items()}


_TYPES = {"float32": "float", "float16": "float16", "int64": "int64", "int32": "int32", "int8": "int8"}


def _check_interface(file: GraphFile, session: onnxruntime.InferenceSession, path: Path) -> None:
    found = session.get_inputs(), session.get_outputs()
    for kind, listed, has in zip(("inputs", "outputs"), (file.inputs, file.outputs), found, strict=True):
        if [(t.name, f"tensor({_TYPES[t.dtype]})", list(t.shape)) for t in listed] != [
            (t.name, t.type, t.shape) for t in has
        ]:
            raise BundleError(f"{path}: its {kind} are not those in the manifest; export again")
