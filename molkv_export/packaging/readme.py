"""Write the README of a package: the facts about its bundle, and how to build the programs or host the page."""

from __future__ import annotations

from molkv_bundle import GraphInfo
from molkv_export.packaging.layout import DATA, EXAMPLE, PROGRAMS, PackageInfo, Platform
from molkv_export.packaging.ort_format import OPERATORS
from molkv_export.packaging.programs import instructions
from molkv_export.packaging.web import hosting, page_onnxruntime
from molkv_export.terminal import human_bytes

_TITLES: dict[Platform, str] = {
    "android": "A language model for Android",
    "ios": "A language model for iOS",
    "native": "A language model and its driver in C++",
    "web": "A language model as a web page",
}
_PROGRAMS: dict[Platform, str] = {
    "android": "the driver in C++ and its library for Kotlin",
    "ios": "the driver in C++ and its library for Swift",
    "native": "the driver in C++ and its command-line tool",
}


_OLDEST_OF_DRIVER = "1.25.0"  # the native driver refuses older versions (runtimes/native/src/onnxruntime.cpp)


def readme(info: PackageInfo, graph: GraphInfo) -> str:
    """Return the README, in Markdown.

    Args:
        info: Description of the package.
        graph: The graph in the package.
    """
    return "\n\n".join(
        (
            f"# {_TITLES[info.target]}",
            _introduction(info, graph),
            *(f"**Note:** {note}." for note in info.notes),
            "\n".join(_table(info)),
            *_deliveries(info),
            *_ort_format(info),
            hosting() if info.target == "web" else instructions(info.target),
        )
    )


def _introduction(info: PackageInfo, graph: GraphInfo) -> str:
    bundle = f"a bundle of profile `{info.profile}` ({human_bytes(info.size)})"
    if info.target == "web":
        return (
            f"This folder is a static site: {bundle} and a page that runs it in the browser, with ONNX Runtime\n"
            f"{page_onnxruntime()}. The page downloads the other files once, and of the tables only the records of "
            "the tokens that it meets."
        )
    oldest = _oldest_onnxruntime(graph)
    return (
        f"This folder holds {bundle} and the programs that run it.\nThe programs need ONNX Runtime {oldest} or newer."
    )


def _oldest_onnxruntime(graph: GraphInfo) -> str:
    """Return the oldest version that both the graph and the native driver accept."""
    return max(_OLDEST_OF_DRIVER, graph.min_onnxruntime, key=lambda version: [int(part) for part in version.split(".")])


def _table(info: PackageInfo) -> list[str]:
    rows = [(part.folder, _contents(part.delivery), human_bytes(part.size)) for part in info.parts]
    if info.target == "web":
        rows += [("index.html", "the page", ""), ("assets", "its programs, among them ONNX Runtime", "")]
    else:
        rows += [(PROGRAMS, _PROGRAMS[info.target], ""), (EXAMPLE, "a program that uses the driver", "")]
    rows += [(DATA, "the contents of this folder, as JSON", "")]
    return [
        "| path | contents | size |",
        "|---|---|---|",
        *(f"| `{name}` | {what} | {size} |" for name, what, size in rows),
    ]


def _contents(delivery: str) -> str:
    return f"files of the bundle, delivery {delivery}" if delivery else "the bundle"


def _deliveries(info: PackageInfo) -> list[str]:
    if all(part.delivery != "fast-follow" for part in info.parts):
        return []
    return [
        "Google Play downloads the packs with delivery fast-follow after the install, each into a folder of its own "
        "(`AssetPackManager.getPackLocation`). The app must wait for them. The example opens install-time packs only."
    ]


def _ort_format(info: PackageInfo) -> list[str]:
    if info.graph_format == "onnx":
        return []
    return [
        "The graphs are in ORT format, ONNX Runtime's own format, so that minimal builds and NNAPI can load them. "
        f"`{OPERATORS}` lists their operators, for `--include_ops_by_config` of ONNX Runtime's build. Each graph file "
        "holds its own copy of the weights. The driver in Python does not run these graphs."
    ]
