"""Reading a bundle's graphs with ONNX's own package."""

from __future__ import annotations

import onnx

from molkv_runtime.bundle import Bundle


def load_graphs(bundle: Bundle) -> dict[int, onnx.ModelProto]:
    """Load a profile's graphs by the length of a call, without their weights, after the driver's checks.

    Raises:
        BundleError: A file is damaged.
    """
    return {length: onnx.load(path, load_external_data=False) for length, path in bundle.graph_paths().items()}
