"""Reading a bundle's graphs with ONNX's own package."""

from __future__ import annotations

from pathlib import Path

import onnx

from molkv_bundle import Bundle


def load_graphs(bundle: Bundle) -> dict[int, onnx.ModelProto]:
    """Load a profile's graphs by the length of a call, without their weights, after the driver's checks.

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
    """Return the file that the graphs of `load_graphs` keep their weights in: where links lead, which ONNX refuses."""
    return (bundle.path / bundle.graph().data).resolve()
