"""Which package may use what of which: imports go one way, and through the names that a package says are for others."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DRIVER = ROOT / "runtimes" / "python"
# What a package may use of this repository beside itself. Tests look inside of what they test.
USES = {
    DRIVER / "molkv_bundle": set(),
    DRIVER / "molkv_runtime": {"molkv_bundle"},
    ROOT / "molkv_export": {"molkv_bundle", "molkv_runtime"},
    ROOT / "benchmarks": {"molkv_bundle", "molkv_runtime", "molkv_export"},
    ROOT / "examples": {"molkv_bundle", "molkv_runtime", "molkv_export"},
}
PACKAGES = {"molkv_bundle", "molkv_runtime", "molkv_export"}
NAMES_OF_THE_DRIVER = 25


class _Import(NamedTuple):
    place: str  # file and line
    module: str
    names: list[str]  # empty: the module itself


def _imports(folder: Path) -> Iterator[_Import]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module:
                yield _Import(place, node.module, [alias.name for alias in node.names])
            elif isinstance(node, ast.Import):
                yield from (_Import(place, alias.name, []) for alias in node.names)


def _wrong(folder: Path) -> Iterator[str]:
    for found in _imports(folder):
        package = found.module.partition(".")[0]
        if package not in PACKAGES or package == folder.name:
            continue
        if package not in USES[folder]:
            yield f"{found.place} uses {package}"
        elif package != "molkv_export":
            public = importlib.import_module(package).__all__
            hidden = [name for name in found.names if name not in public]
            if found.module != package or hidden or not found.names:
                yield f"{found.place} uses {found.module}: {', '.join(hidden or found.names)}"


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_packages_use_what_others_say_is_for_them() -> None:
    assert [wrong for folder in USES for wrong in _wrong(folder)] == []


def test_the_driver_has_few_public_names() -> None:
    assert len(importlib.import_module("molkv_runtime").__all__) <= NAMES_OF_THE_DRIVER


def test_every_public_name_is_there_and_said_once() -> None:
    for package in ("molkv_bundle", "molkv_runtime", "molkv_export"):
        module = importlib.import_module(package)
        assert len(set(module.__all__)) == len(module.__all__)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_reading_a_bundle_needs_no_runtime() -> None:
    code = "import sys, molkv_bundle; print({'onnxruntime', 'tokenizers', 'torch', 'molkv_runtime'} & set(sys.modules))"
    assert _run(code) == "set()\n"


def test_the_exporter_imports_pytorch_when_it_is_first_used() -> None:
    heavy = "print(sorted({'torch', 'onnx', 'onnx_ir', 'jinja2'} & set(sys.modules)))"
    assert _run(f"import sys, molkv_export; {heavy}") == "[]\n"
    assert _run(f"import sys; from molkv_export import inspect; {heavy}") == "[]\n"
    assert _run(f"import sys; import molkv_export.commands; {heavy}") == "[]\n"
    assert "torch" not in _run(f"import sys; from molkv_export import package; {heavy}")
    assert "torch" in _run(f"import sys; from molkv_export import export; {heavy}")


def test_no_module_hides_a_function_of_its_name() -> None:
    """Importing a submodule puts it into its package under its name."""
    code = (
        "import importlib, pkgutil, types, molkv_export\n"
        "for module in pkgutil.walk_packages(molkv_export.__path__, 'molkv_export.'):\n"
        "    importlib.import_module(module.name)\n"
        "from molkv_export import add_profile, export, inspect, package, validate\n"
        "print([isinstance(f, types.FunctionType) for f in (add_profile, export, inspect, package, validate)])\n"
    )
    assert _run(code) == f"{[True] * 5}\n"
