"""Laying out a bundle for an app: within the limits of its store, and with a README for its programmers.

`package.py` has the function. It is not imported here: the command line looks into this package also where the language
of the templates is not installed.
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
