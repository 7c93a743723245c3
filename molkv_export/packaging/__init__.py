"""Package a bundle for an app, within the size limits of the app store, with the programs that run it.

The function is in `package.py`. This file does not import it, because `package.py` imports onnxruntime. The command
line imports this Python package at every start, and the import of onnxruntime takes time.
"""

from molkv_export.packaging.layout import (
    LIMITS,
    AppFolder,
    GraphFormat,
    Limits,
    PackagedGraph,
    PackageInfo,
    Platform,
)

__all__ = ["LIMITS", "AppFolder", "GraphFormat", "Limits", "PackageInfo", "PackagedGraph", "Platform"]
