"""The programs of a package: the native driver, its library for the platform, and an example.

The files are those of `runtimes` in the repository. An installed molkv-export has them beside this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from molkv_export.atomic_folder import copy_file
from molkv_export.packaging.layout import EXAMPLE, PROGRAMS, README, Platform

_INSTALLED = Path(__file__).parent / PROGRAMS
SOURCES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent.parent / PROGRAMS

# The files and folders of `runtimes` in a package, besides the example.
_DRIVER = ("native/LICENSE", "native/CMakeLists.txt", "native/include", "native/src")
_PARTS: dict[Platform, tuple[str, ...]] = {
    "android": (*_DRIVER, "android"),
    "ios": ("ios",),  # its links lead to the driver, which a Swift package must have inside its folder
    "native": (*_DRIVER, "native/tool"),
}
_PACK = "asset-pack.gradle.kts"  # becomes the build file of each asset pack
_OMITTED = {"build", EXAMPLE, "fuzz", "test", "tests", "Tests"}  # names of folders


def instructions(target: Platform) -> str:
    """Return how to build the programs: the part of the README that is the same in all packages for a platform."""
    return (_example(target) / README).read_text(encoding="utf-8")


def asset_pack_build_file(delivery: str) -> str:
    """Return the `build.gradle.kts` of an asset pack."""
    text = (_example("android") / _PACK).read_text(encoding="utf-8")
    return text.replace('"install-time"', f'"{delivery}"')


def copy_programs(target: Platform, folder: Path) -> list[str]:
    """Copy the driver, its library for the platform and the example into a package.

    Returns:
        The paths of the copies, relative to the package.

    Raises:
        OSError: The disk is full, or writing fails.
    """
    sources = {f"{PROGRAMS}/{path.relative_to(SOURCES)}": path for path in _files(target)}
    example = _example(target)
    for path in _walk(example):
        if path.name not in (README, _PACK):
            sources[f"{EXAMPLE}/{path.relative_to(example)}"] = path
    for name, path in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, folder / name)
    return sorted(sources)


def _example(target: Platform) -> Path:
    return SOURCES / target / EXAMPLE


def _files(target: Platform) -> Iterator[Path]:
    for part in _PARTS[target]:
        path = SOURCES / part
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, also through links, without tests and build outputs."""
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name not in _OMITTED and not name.startswith(".")]
        yield from (Path(path) / name for name in names if not name.startswith("."))
