"""The programs of a package: the same files as in the repository, from a checkout and from an installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from molkv_export import package
from molkv_export.packaging import Platform, programs
from tests.manifests import replace_file
from tests.models import STDLIB_MINI

ROOT = Path(__file__).parent.parent.parent.parent
TARGETS = [target for target in get_args(Platform) if target != "web"]  # test_web.py has the tests of web


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", TARGETS)
def test_a_package_holds_the_driver_without_its_tests(
    target: Platform, phone: Callable[..., Path], tmp_path: Path
) -> None:
    info = package(phone(), tmp_path / "out", target=target)
    copied = contents(tmp_path / "out" / "runtimes")
    assert {name: (ROOT / "runtimes" / name).read_bytes() for name in copied} == copied
    folder = "ios/Sources/CMolkv" if target == "ios" else "native"
    for part in ("include", "src"):
        original = contents(ROOT / "runtimes" / "native" / part)
        assert {name: copied[f"{folder}/{part}/{name}"] for name in original} == original
    assert ("ios/LICENSE" if target == "ios" else "native/LICENSE") in copied
    assert any(name.startswith("native/tool/") for name in copied) == (target == "native")
    assert not {"tests", "Tests", "test", "example", "fuzz"} & {part for name in copied for part in Path(name).parts}
    assert [name for name in info.programs if not (tmp_path / "out" / name).is_file()] == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_has_at_most_100_lines(target: Platform, phone: Callable[..., Path], tmp_path: Path) -> None:
    package(phone(), tmp_path / "out", target=target)
    example = contents(tmp_path / "out" / "example")
    assert all(
        content == (ROOT / "runtimes" / target / "example" / name).read_bytes() for name, content in example.items()
    )
    assert 0 < sum(content.count(b"\n") for content in example.values()) <= 100


@pytest.mark.parametrize("target", TARGETS)
def test_the_readme_lists_at_most_100_lines_that_no_test_compiles(
    target: Platform, phone: Callable[..., Path], tmp_path: Path
) -> None:
    package(phone(), tmp_path / "out", target=target)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert len(readme.splitlines()) <= 60
    listed = re.findall(r"^- `([^`]+)`", readme.partition("## What no test compiled")[2], re.MULTILINE)
    assert bool(listed) == (target != "native")
    assert sum(len((tmp_path / "out" / name).read_text().splitlines()) for name in listed) <= 100


def test_tests_and_build_outputs_are_not_copied_and_links_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SOURCES", tmp_path / "runtimes")
    kept = {"ios/Package.swift", "ios/Sources/Model.swift"}
    omitted = {"ios/.build/x.o", "ios/build/x.o", "ios/Tests/Test.swift", "native/tool/main.cpp", "native/src/.cache/x"}
    for name in (*kept, *omitted, "ios/example/ExampleApp.swift", "ios/example/README.md"):
        (tmp_path / "runtimes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runtimes" / name).write_text(name)
    (tmp_path / "runtimes" / "ios" / "Sources" / "C").symlink_to("../../native/src")
    (tmp_path / "runtimes" / "native" / "src" / "a.cpp").write_text("a")
    copied = programs.copy_programs("ios", tmp_path / "out")
    kept |= {"ios/Sources/C/a.cpp"}
    assert copied == sorted(["example/ExampleApp.swift", *(f"runtimes/{name}" for name in kept)])
    assert contents(tmp_path / "out").keys() == set(copied)
    assert not (tmp_path / "out" / "runtimes" / "ios" / "Sources" / "C").is_symlink()


def test_the_driver_has_the_licence_of_the_repository() -> None:
    assert (ROOT / "runtimes" / "native" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (None, "the bundle has no tokenizer, so prompts must be token ids"),
        (Tokenizer(WordLevel({"a": 0}, "a")), "the driver in C++ does not support the tokenizer ("),
        (Tokenizer.from_file(str(STDLIB_MINI / "tokenizer.json")), ""),
    ],
)
def test_a_tokenizer_that_the_driver_cannot_read_is_reported(
    tokenizer: Tokenizer | None,
    expected: str,
    phone: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = Path(shutil.copytree(phone(), tmp_path / "bundle"))
    if tokenizer is not None:
        replace_file(bundle, "tokenizer.json", tokenizer.to_str().encode())
    info = package(bundle, tmp_path / "out", target="ios")
    if not expected:
        assert info.notes == caplog.messages == []
        return
    [note] = info.notes
    assert note.startswith(expected)
    assert caplog.messages == [f"{bundle}: {note}"]
    assert f"**Note:** {note}." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_an_installed_wheel_makes_the_same_packages(phone: Callable[..., Path], tmp_path: Path) -> None:
    wheels, place = tmp_path / "wheels", tmp_path / "venv"
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", wheels, ROOT]
    _run(sys.executable, "-m", "pip", *build)
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    [wheel] = wheels.iterdir()
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # The dependencies come from this environment. A .pth file inside the added folder, which names the checkout, has no
    # effect.
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    where = _run(
        python, "-c", "import molkv_export, molkv_runtime; print(molkv_export.__file__, molkv_runtime.__file__)"
    )
    assert where.count(str(place)) == 2
    for target in TARGETS:
        _run(place / "bin" / "molkv-export", "package", phone(), tmp_path / "installed" / target, "--target", target)
        package(phone(), tmp_path / "here" / target, target=target)
        assert contents(tmp_path / "installed" / target) == contents(tmp_path / "here" / target)


def _run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
