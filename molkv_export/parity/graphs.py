"""Reading a bundle's graphs with ONNX's own package."""

from __future__ import annotations

import onnx

from molkv_runtime.bundle import Bundle
from molkv_runtime.graph_file import check_graph_file


def load_graphs(bundle: Bundle) -> dict[int, onnx.ModelProto]:
    """Load a profile's graphs without their weights, after the driver's checks of hashes and of where weights are.

    Raises:
        BundleError: A file is damaged.
    """
    info, graphs = bundle.graph(), {}
    data = bundle.file(info.data).name
    for file in info.files:
        path = bundle.file(file.file)
        check_graph_file(path, data)
        graphs[file.length] = onnx.load(path, load_external_data=False)
    return graphs
