"""The exporter, which makes bundles from trained lookup-expert models.

- `export` writes a bundle.
- `write_part` writes a part of the expert store of a bundle, which `export` assembles.
- `add_profile` adds graphs to a bundle.
- `validate` compares a bundle with its source.
- `inspect` describes a bundle.
- `package` writes the files with which an app runs a bundle.
- `push` publishes a bundle.

The command line calls these functions. Each name is imported only when it is first used, because the import of PyTorch
and ONNX takes seconds, and `inspect` needs neither of them.
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
    from molkv_export.parts import PartInfo, write_part
    from molkv_export.profiles import GraphOptions
    from molkv_export.uploading import PushInfo, push

__version__ = "0.1.0"  # pyproject.toml reads this line; a checkout without an installation has a version, too

__all__ = [
    "GraphOptions",
    "Inspection",
    "PackageInfo",
    "PartInfo",
    "PushInfo",
    "Report",
    "Scope",
    "__version__",
    "add_profile",
    "export",
    "inspect",
    "package",
    "push",
    "validate",
    "write_part",
]

_MODULES = {  # the module in which each name is defined, as in the imports above
    "GraphOptions": "profiles",
    "Inspection": "inspection",
    "PackageInfo": "packaging.layout",
    "PartInfo": "parts",
    "PushInfo": "uploading",
    "Report": "parity.validate",
    "Scope": "parity.compared_texts",
    "add_profile": "exporter",
    "export": "exporter",
    "inspect": "inspection",
    "package": "packaging.package",
    "push": "uploading",
    "validate": "parity.validate",
    "write_part": "parts",
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
