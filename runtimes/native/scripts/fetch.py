"""Fetch what the tests of the native driver need from the registries of npm and pip.

    python runtimes/native/scripts/fetch.py FOLDER PART...

The parts, and what each one writes to FOLDER:

- headers: ONNX Runtime's C headers, `include/`
- library: a link to the library of the installed ONNX Runtime, `x86_64/libonnxruntime.so`
- arm64: the library of the same version for Linux on arm64, `aarch64/libonnxruntime.so`
- kotlin: Kotlin's compiler and the libraries that the Kotlin tests use, `kotlin/`

Each download has a fixed version and a SHA-256. Only the files that the tests need are kept.
"""

import argparse
import hashlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO

# A package that has the headers of API 29. The wheels of ONNX Runtime have no headers.
HEADERS = "com.github.asus4.onnxruntime@0.4.9"
HEADERS_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
HEADERS_FOLDER = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/"

KOTLIN = "kotlin-compiler@2.4.20"
KOTLIN_SHA256 = "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f"
KOTLIN_LIBRARIES = ("kotlin-stdlib", "kotlinx-coroutines-core-jvm", "kotlin-test")
KOTLIN_COMPILER = ("kotlin-compiler", "kotlin-reflect", "kotlin-script-runtime", "annotations-13.0")

# The wheel for Python 3.11 of the version in constraints.txt. Only its library is used, so any Python will do.
ONNXRUNTIME = "1.32.0"
ARM64_SHA256 = "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c"


def main() -> None:
    """Read the command line and fetch the parts that it names."""
    parts = {"headers": headers, "library": library, "arm64": arm64, "kotlin": kotlin}
    parser = argparse.ArgumentParser(description="Fetch what the tests of the native driver need.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", choices=parts)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as downloads:
            parts[part](arguments.folder, Path(downloads))


def headers(folder: Path, downloads: Path) -> None:
    """Write the headers of ONNX Runtime to `folder`/include."""
    with tarfile.open(npm(HEADERS, HEADERS_SHA256, downloads)) as package:
        for member in package:
            if member.name.startswith(HEADERS_FOLDER) and member.isfile():
                keep(package.extractfile(member), folder / "include" / Path(member.name).name)


def kotlin(folder: Path, downloads: Path) -> None:
    """Write Kotlin's compiler to `folder`/kotlin/compiler and the libraries of the tests to `folder`/kotlin."""
    names = {f"package/lib/{name}.jar": folder / "kotlin" for name in KOTLIN_LIBRARIES}
    names |= {f"package/lib/{name}.jar": folder / "kotlin" / "compiler" for name in KOTLIN_COMPILER}
    with tarfile.open(npm(KOTLIN, KOTLIN_SHA256, downloads)) as package:
        for name, target in names.items():
            keep(package.extractfile(name), target / Path(name).name)


def library(folder: Path, _: Path) -> None:
    """Link the library of the ONNX Runtime that this Python has to `folder`/x86_64/libonnxruntime.so."""
    files = importlib.metadata.files("onnxruntime") or []
    found = next(file for file in files if file.name == f"libonnxruntime.so.{installed()}")
    link = folder / "x86_64" / "libonnxruntime.so"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(str(found.locate())).resolve())


def arm64(folder: Path, downloads: Path) -> None:
    """Write ONNX Runtime's library for Linux on arm64 to `folder`/aarch64/libonnxruntime.so."""
    if installed() != ONNXRUNTIME:
        sys.exit(f"fetch.py: found ONNX Runtime {installed()}, but has the checksum of {ONNXRUNTIME}: change both")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", "--platform", "manylinux_2_28_aarch64"]
    run([*command, "--dest", str(downloads), f"onnxruntime=={ONNXRUNTIME}"])
    with zipfile.ZipFile(checked(next(downloads.glob("*.whl")), ARM64_SHA256)) as wheel:
        name = f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}"
        keep(wheel.open(name), folder / "aarch64" / "libonnxruntime.so")


def installed() -> str:
    """Return the version of the ONNX Runtime that this Python has."""
    return importlib.metadata.version("onnxruntime")


def npm(package: str, sha256: str, downloads: Path) -> Path:
    """Download an npm package, check it, and return the path of the archive."""
    run(["npm", "pack", "--silent", "--pack-destination", str(downloads), package])
    return checked(next(downloads.glob("*.tgz")), sha256)


def run(command: list[str]) -> None:
    """Run a command without its output. End this program if the command fails."""
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"fetch.py: found no program {command[0]}, which downloads {command[-1]}: install it")
    except subprocess.CalledProcessError as error:
        sys.exit(f"fetch.py: could not download {command[-1]}: {command[0]} ended with {error.returncode}")


def checked(path: Path, sha256: str) -> Path:
    """Return the path, or end this program if the file does not have the checksum."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        sys.exit(f"fetch.py: {path.name}: found SHA-256 {found}, expected {sha256}")
    return path


def keep(content: IO[bytes] | None, target: Path) -> None:
    """Write the content of an archive's file to a path."""
    assert content is not None, f"{target.name} is not a regular file of the archive"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.read())


if __name__ == "__main__":
    main()
