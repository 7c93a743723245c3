"""Packages for the web, with a small folder in the place of the built page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from molkv_bundle import BundleError, OutputError, RequestError, read_manifest, verify
from molkv_export import package
from molkv_export.commands.package import package_command
from molkv_export.packaging import web
from molkv_runtime import selftest
from tests.manifests import edit_manifest, replace_file

_CONFORMANCE = Path(__file__).parents[3] / "runtimes" / "conformance" / "bundles"
_PAGE = {
    "index.html": "<!doctype html>",
    "service-worker.js": "1",
    "LICENSES.txt": "MIT",
    "README.md": "## Host it\n\nCopy this folder.\n",
    "assets/page-ABC.js": "2",
    "assets/onnxruntime-1.30.0/ort.wasm": "3",
}


@pytest.fixture(autouse=True)
def page(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the built page."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in _PAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(web, "PAGE", folder)
    return folder


def test_a_site_holds_the_page_and_a_bundle_of_profile_cpu(phone: Callable[..., Path], tmp_path: Path) -> None:
    info = package(phone(), tmp_path / "out", target="web")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    bundle = tmp_path / "out" / "bundle"
    assert {name for name in names if not name.startswith("bundle/")} == {*_PAGE, "molkv-package.json"}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in _PAGE.items() if name != "README.md")
    assert sorted(info.programs) == sorted(_PAGE.keys() - {"README.md"})
    assert list(read_manifest(bundle).graphs) == ["cpu"]
    assert verify(bundle).findings == []
    assert selftest(bundle).failures == []


def test_a_site_of_gemma_4_passes_its_selftest(tmp_path: Path) -> None:
    package(_CONFORMANCE / "gemma4", tmp_path / "out", target="web")
    assert selftest(tmp_path / "out" / "bundle").failures == []


def test_the_readme_says_how_to_host_the_site(phone: Callable[..., Path], tmp_path: Path) -> None:
    package(phone(), tmp_path / "out", target="web")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert readme.startswith(
        "# A language model as a web page\n\nThis folder is a static site: a bundle of profile `cpu`"
    )
    assert "with ONNX Runtime\n1.30.0." in readme
    assert "| `bundle` | the bundle |" in readme
    assert readme.endswith("## Host it\n\nCopy this folder.\n")


def test_a_site_can_be_replaced_and_a_file_of_a_person_is_kept(phone: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(2):
        package(phone(), tmp_path / "out", target="web", force=True)
    (tmp_path / "out" / "assets" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files that molkv-export did not"):
        package(phone(), tmp_path / "out", target="web", force=True)


def test_without_the_page_the_error_says_what_builds_it(page: Path, phone: Callable[..., Path], tmp_path: Path) -> None:
    shutil.rmtree(page)
    with pytest.raises(RequestError, match=r"page\d+: not found, expected the web page; build it with `make page`"):
        package(phone(), tmp_path / "out", target="web")
    done = CliRunner().invoke(package_command, [str(phone()), str(tmp_path / "out"), "--target", "web"])
    assert isinstance(done.exception, RequestError)
    assert list(tmp_path.iterdir()) == []


def test_a_page_with_an_older_onnxruntime_is_refused(page: Path, phone: Callable[..., Path], tmp_path: Path) -> None:
    (page / "assets" / "onnxruntime-1.30.0").rename(page / "assets" / "onnxruntime-1.9.0")
    with pytest.raises(RequestError, match=r"has ONNX Runtime 1\.9\.0, expected 1\.\d+\.\d+ or newer"):
        package(phone(), tmp_path / "out", target="web")


def test_other_profiles_and_formats_are_refused(phone: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="profile: found nnapi, expected cpu for target web"):
        package(phone(), tmp_path / "out", target="web", profile="nnapi")
    with pytest.raises(RequestError, match="graph_format: found ort, expected onnx for target web"):
        package(phone(), tmp_path / "out", target="web", graph_format="ort")
    bundle = Path(shutil.copytree(phone(), tmp_path / "bundle"))
    edit_manifest(bundle, lambda m: m.update(graphs={"nnapi": m["graphs"]["nnapi"]}))
    with pytest.raises(BundleError, match=r"cpu"):
        package(bundle, tmp_path / "out", target="web")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (None, "the bundle has no tokenizer, so prompts must be token ids"),
        (Tokenizer(WordLevel({"a": 0}, "a")), "the driver in JavaScript does not support the tokenizer (model: found"),
    ],
)
def test_a_tokenizer_that_the_driver_cannot_read_is_reported(
    tokenizer: Tokenizer | None, expected: str, phone: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(phone(), tmp_path / "bundle"))
    if tokenizer is not None:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        replace_file(bundle, "tokenizer.json", (tmp_path / "tokenizer.json").read_bytes())
    (note,) = package(bundle, tmp_path / "out", target="web").notes
    assert note.startswith(expected)
    assert note.endswith("so prompts must be token ids")
