"""Imports between our packages: they go one way, and use only public names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
DRIVER = ROOT / "runtimes" / "python"
# The packages of this repository that each folder may use beside itself. Tests may import every module.
USES = {
    DRIVER / "molkv_bundle": set(),
    DRIVER / "molkv_runtime": {"molkv_bundle"},
    ROOT / "molkv_export": {"molkv_bundle", "molkv_runtime"},
    ROOT / "benchmarks": {"molkv_bundle", "molkv_runtime", "molkv_export"},
    ROOT / "examples": {"molkv_bundle", "molkv_runtime", "molkv_export"},
}
PACKAGES = {"molkv_bundle", "molkv_runtime", "molkv_export"}
NAMES_OF_THE_DRIVER = 34
PRIVATE = re.compile(r"_[A-Za-z]\w*$")  # not __init__ and the like
IN_A_TEXT = re.compile(r"(?:^|\.|\bimport )(_[A-Za-z]\w*)")  # the name of an attribute, or a program


class _Import(NamedTuple):
    place: str  # file and line
    module: str
    names: list[str]  # empty: the module itself


def _trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def _imports(folder: Path) -> Iterator[_Import]:
    for path, tree in _trees(folder):
        for node in ast.walk(tree):
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


def test_packages_use_only_the_public_names_of_others() -> None:
    assert [wrong for folder in USES for wrong in _wrong(folder)] == []


def _private_names(tree: ast.AST) -> set[str]:
    """Return the private names that a module, its classes and its methods define."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if PRIVATE.match(name)}


def _private_uses(tree: ast.AST, private: set[str], own: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each use of a private name: an import, an attribute, or a part of a text.

    Args:
        tree: A test, or a part of it.
        private: The private names of our packages.
        own: The private names that the class around the part defines. It may use them on `self`.
    """
    for node in ast.iter_child_nodes(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ClassDef):
            yield from _private_uses(node, private, frozenset(_private_names(node)))
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            yield from ((line, alias.name) for alias in node.names if PRIVATE.match(alias.name))
        elif isinstance(node, ast.Attribute) and node.attr in private:
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in own
            yield from () if is_own else [(line, node.attr)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((line, name) for name in IN_A_TEXT.findall(node.value) if name in private)
        yield from _private_uses(node, private, own)


def test_tests_use_no_private_name_of_our_packages() -> None:
    """Make the name public or give the code a parameter, where a test needs more than its public names."""
    folders = [folder for folder in USES if folder.name in PACKAGES]
    private = {name for folder in folders for _, tree in _trees(folder) for name in _private_names(tree)}
    used = [
        f"{path.relative_to(ROOT)}:{line} uses {name}"
        for path, tree in _trees(ROOT / "tests")
        if path != Path(__file__)  # it has examples
        for line, name in _private_uses(tree, private)
    ]
    assert used == []


@pytest.mark.parametrize(
    "text",
    [
        "from molkv_runtime.window import _rotate",
        "from molkv_runtime import window\nwindow._rotate(1)",
        "patch.setattr(window, '_rotate', 1)",
        "patch.setattr('molkv_runtime.window._rotate', 1)",
        "class Wrapper:\n    def run(self):\n        self._rotate = self._graph._rotate",
        "def broken(self):\n    self._rotate = 0.0",
        "run('from molkv_runtime import window; window._rotate = 1')",
    ],
)
def test_a_private_name_is_seen(text: str) -> None:
    assert [name for _, name in _private_uses(ast.parse(text), {"_rotate"})] == ["_rotate"]


def test_a_test_may_have_private_names_of_its_own() -> None:
    text = "def _rotate(): ...\nclass Wrapper:\n    def run(self):\n        self._rotate = _rotate()"
    assert list(_private_uses(ast.parse(text), {"_rotate"})) == []


def test_the_driver_has_few_public_names() -> None:
    assert len(importlib.import_module("molkv_runtime").__all__) <= NAMES_OF_THE_DRIVER


def test_every_public_name_exists_and_is_listed_once() -> None:
    for package in ("molkv_bundle", "molkv_runtime", "molkv_export"):
        module = importlib.import_module(package)
        assert len(set(module.__all__)) == len(module.__all__)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_reading_a_bundle_needs_no_runtime() -> None:
    code = "import sys, molkv_bundle; print({'onnxruntime', 'tokenizers', 'torch', 'molkv_runtime'} & set(sys.modules))"
    assert _run(code) == "set()\n"


def test_importing_the_exporter_leaves_the_logging_of_the_program_alone() -> None:
    code = "import logging; from molkv_export import export, validate, package, inspect; root = logging.getLogger()"
    assert _run(f"{code}; print(root.level == logging.WARNING, root.handlers)") == "True []\n"


def test_the_command_line_imports_no_package_for_urls() -> None:
    heavy = "print({'huggingface_hub', 'fsspec', 'obstore', 'sqlite3'} & set(sys.modules))"
    code = "import sys, molkv_runtime, molkv_export.commands; from molkv_export import push"
    assert _run(f"{code}; {heavy}") == "set()\n"


@pytest.mark.slow
def test_the_exporter_imports_pytorch_when_it_is_first_used() -> None:
    heavy = "print(sorted({'torch', 'onnx', 'onnx_ir', 'jinja2'} & set(sys.modules)))"
    assert _run(f"import sys, molkv_export; {heavy}") == "[]\n"
    assert _run(f"import sys; from molkv_export import inspect; {heavy}") == "[]\n"
    assert _run(f"import sys; import molkv_export.commands; {heavy}") == "[]\n"
    assert "torch" not in _run(f"import sys; from molkv_export import package; {heavy}")
    assert "torch" in _run(f"import sys; from molkv_export import export; {heavy}")


@pytest.mark.slow
def test_no_module_hides_a_function_of_the_same_name() -> None:
    """Import all submodules. Importing one sets an attribute of its package with the name of the submodule."""
    code = (
        "import importlib, pkgutil, types, molkv_export\n"
        "for module in pkgutil.walk_packages(molkv_export.__path__, 'molkv_export.'):\n"
        "    importlib.import_module(module.name)\n"
        "from molkv_export import add_profile, export, inspect, package, validate\n"
        "print([isinstance(f, types.FunctionType) for f in (add_profile, export, inspect, package, validate)])\n"
    )
    assert _run(code) == f"{[True] * 5}\n"
