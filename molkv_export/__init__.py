"""The exporter: trained lookup-expert models in, bundles out.

`export` makes a bundle, `add_profile` adds graphs to it, `validate` compares it with its source, `inspect` looks into
it and `package` lays it out for an app. The commands are thin over these functions.

A name is imported when it is first used: PyTorch and ONNX take seconds to import, and need not be installed where a
bundle is only looked into.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molkv_export.exporter import add_profile, export
    from molkv_export.inspection import Inspection, inspect
    from molkv_export.packaging.layout import PackageInfo
    from molkv_export.packaging.package import package
    from molkv_export.parity.compared_texts import Scope
    from molkv_export.parity.validate import Report, validate
    from molkv_export.profiles import GraphOptions

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here, so that a checkout knows it, too

__all__ = [
    "GraphOptions",
    "Inspection",
    "PackageInfo",
    "Report",
    "Scope",
    "__version__",
    "add_profile",
    "export",
    "inspect",
    "package",
    "validate",
]

_MODULES = {  # as above: where each name is defined
    "GraphOptions": "profiles",
    "Inspection": "inspection",
    "PackageInfo": "packaging.layout",
    "Report": "parity.validate",
    "Scope": "parity.compared_texts",
    "add_profile": "exporter",
    "export": "exporter",
    "inspect": "inspection",
    "package": "packaging.package",
    "validate": "parity.validate",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
