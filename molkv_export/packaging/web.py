"""The web page of a package: the driver in JavaScript, ONNX Runtime for browsers, and the page that uses them.

`make page` builds the files in a checkout. `make wheel` puts them beside this module.
"""

from __future__ import annotations

from pathlib import Path

from molkv_bundle import GraphInfo, RequestError
from molkv_export.atomic_folder import copy_file
from molkv_export.packaging.layout import README

_INSTALLED = Path(__file__).parent / "site"
_BUILT = Path(__file__).parents[2] / "runtimes" / "js" / ".build" / "page"
PAGE = _INSTALLED if _INSTALLED.is_dir() else _BUILT

_START = "index.html"
_ONNXRUNTIME = "onnxruntime-"  # the name of the folder with ONNX Runtime begins so; its version follows


def check_page(graph: GraphInfo | None = None) -> None:
    """Check that the page was built, and that its ONNX Runtime is new enough for a graph.

    Raises:
        RequestError: There is no page, or its ONNX Runtime is too old.
    """
    if not (PAGE / _START).is_file():
        raise RequestError(
            f"{PAGE}: not found, expected the web page; build it with `make page` in a checkout (needs Node 20), or "
            "install a wheel that `make wheel` wrote"
        )
    if graph and _numbers(page_onnxruntime()) < _numbers(graph.min_onnxruntime):
        raise RequestError(
            f"{PAGE}: has ONNX Runtime {page_onnxruntime()}, expected {graph.min_onnxruntime} or newer for this "
            "bundle; update onnxruntime-web in runtimes/js, and build the page again"
        )


def page_onnxruntime() -> str:
    """Return the version of ONNX Runtime in the page, such as "1.30.0"."""
    (folder,) = PAGE.glob(f"assets/{_ONNXRUNTIME}*")
    return folder.name.removeprefix(_ONNXRUNTIME)


def hosting() -> str:
    """Return how to host the page: the part of the README that is the same in all packages."""
    return (PAGE / README).read_text(encoding="utf-8")


def copy_page(folder: Path) -> list[str]:
    """Copy the page into a package.

    Returns:
        The paths of the copies, relative to the package.

    Raises:
        OSError: The disk is full, or writing fails.
    """
    names = [str(path.relative_to(PAGE)) for path in PAGE.rglob("*") if path.is_file() and path != PAGE / README]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(PAGE / name, folder / name)
    return sorted(names)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
