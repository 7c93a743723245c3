"""Laying out a bundle for an app: within the limits of its store, and with a README for its programmers."""

from molkv_export.package.content import GraphFormat
from molkv_export.package.layout import PackagedGraph, PackageInfo, Part
from molkv_export.package.limits import LIMITS, Limits, Target
from molkv_export.package.package import package

__all__ = ["LIMITS", "GraphFormat", "Limits", "PackageInfo", "PackagedGraph", "Part", "Target", "package"]
