"""Package a bundle for an app, within the size limits of the app store, with a README for app developers.

The function is in `package.py`. This file does not import it, because `package.py` imports jinja2. The command line
imports this Python package at every start, and the import of jinja2 takes time.
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
