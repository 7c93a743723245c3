"""The example of a native package: built and run with the commands of its README."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from molkv_export import package
from molkv_runtime import Generator

HEADERS = os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "")  # no wheel of ONNX Runtime has them


pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not HEADERS, reason="ONNXRUNTIME_INCLUDE_DIR does not name the folder of onnxruntime_c_api.h"),
]


def test_the_native_example_continues_a_text_like_the_driver_in_python(
    stdlib_mini_bundle: Path, tmp_path: Path
) -> None:
    package(stdlib_mini_bundle, tmp_path / "out", target="native")
    onnxruntime_folder(tmp_path / "ort")
    readme = (tmp_path / "out" / "README.md").read_text().replace("ORT/", f"{tmp_path}/ort/")
    *build, run = [shlex.split(line) for line in readme.splitlines() if line.startswith("    ")]
    assert [command[0] for command in build] == ["cmake", "cmake"]
    for command in build:
        subprocess.run(command, cwd=tmp_path / "out", check=True, env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": "2"})
    done = subprocess.run(run, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = "".join(Generator(stdlib_mini_bundle).text("def ", max_new_tokens=64))
    assert done.stdout.endswith(f"\nself-test: passed\ndef {text}\n")


def test_the_driver_in_a_package_for_a_phone_has_all_files_of_its_build(
    bundles: Callable[..., Path], tmp_path: Path
) -> None:
    package(bundles("molkv"), tmp_path / "out", target="android")
    source, build = tmp_path / "out" / "runtimes" / "native", tmp_path / "build"
    subprocess.run(["cmake", "-S", source, "-B", build, f"-DONNXRUNTIME_INCLUDE_DIR={HEADERS}"], check=True)


def onnxruntime_folder(folder: Path) -> None:
    """Make a folder like a release of ONNX Runtime, with the library of the Python package."""
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(HEADERS)
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
