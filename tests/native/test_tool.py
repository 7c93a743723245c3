"""The tool `molkv` runs what the Python packages make.

The tests need the build folder of the tool in the environment variable MOLKV_NATIVE_BUILD.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

import molkv_export
from molkv_export import package
from molkv_export.packaging import Platform
from tests.manifests import edit_manifest, replace_file
from tests.native.programs import native_tool

_CONFORMANCE = Path(__file__).parents[2] / "runtimes" / "conformance" / "bundles"


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    return subprocess.run(
        [native_tool(), *arguments],
        env=os.environ | {"MOLKV_ONNXRUNTIME": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_library_has_the_version_of_the_project() -> None:
    assert _run("--version").stdout == f"molkv {molkv_export.__version__}\n"


@pytest.mark.parametrize(("name", "target", "profile"), [("nnapi", "android", "nnapi"), ("molkv", "ios", "cpu")])
def test_graphs_in_ort_format_pass_the_selftest(name: str, target: Platform, profile: str, tmp_path: Path) -> None:
    info = package(_CONFORMANCE / name, tmp_path / "out", target=target, profile=profile, graph_format="ort")
    bundle = tmp_path / "bundle"
    for part in info.parts:
        shutil.copytree(tmp_path / "out" / part.folder, bundle, dirs_exist_ok=True)
    assert list(bundle.glob("*.ort"))
    done = _run("selftest", bundle)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "unknown, since the graph is in ORT format" in _run("inspect", bundle).stdout
    assert "cannot be required" in _run("selftest", bundle, "--require-provider").stderr
    damaged = next(bundle.glob("*.ort"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    done = _run("run", bundle, "--prompt-ids", "1,2,3")
    assert done.returncode == 1
    assert f"{damaged.name}: has sha256" in done.stderr


def test_an_onnx_file_with_the_name_of_a_file_in_ort_format_is_refused(tmp_path: Path) -> None:
    """Such a graph would escape the check of its nodes."""
    bundle = tmp_path / "bundle"
    shutil.copytree(_CONFORMANCE / "dense", bundle)
    replace_file(bundle, "model.ort", (bundle / "model.onnx").read_bytes())
    edit_manifest(bundle, lambda manifest: manifest["graphs"]["cpu"].update(data="model.ort"))
    edit_manifest(bundle, lambda manifest: manifest["graphs"]["cpu"]["files"][0].update(file="model.ort"))
    done = _run("run", bundle, "--prompt-ids", "1,2,3")
    assert done.returncode == 1
    assert 'model.ort: provider "cpu" cannot load it' in done.stderr
