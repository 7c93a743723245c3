"""Laying out a bundle for an app: within the limits of its store, and with a README for its programmers.

`package.py` has the function. It is not imported here: the command line looks into this package also where the language
of the templates is not installed.
"""

from molkv_export.packaging.content import GraphFormat
from molkv_export.packaging.layout import PackagedGraph, PackageInfo, Part
from molkv_export.packaging.limits import LIMITS, Limits, Target

__all__ = ["LIMITS", "GraphFormat", "Limits", "PackageInfo", "PackagedGraph", "Part", "Target"]
