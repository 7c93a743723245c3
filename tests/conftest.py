"""Checkpoints and bundles that the tests of several folders share."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from filelock import FileLock

from molkv_bundle import RowDtype
from molkv_export import GraphOptions, export
from molkv_export.graph.choices import MIN_ONNXRUNTIME_OF_INT8_KV
from molkv_runtime import PRESETS
from tests.models import CONFIGS, STDLIB_MINI, lookup_form, random_model, save_checkpoint
from tests.remote_servers import bucket, cache, hub, hub_settings, running_hub, running_s3, s3_settings

__all__ = ["bucket", "cache", "hub", "hub_settings", "running_hub", "running_s3", "s3_settings"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that no process is left with a long test at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _waiting_threads_sleep() -> Iterator[None]:
    """Let the threads of ONNX Runtime sleep while they wait, since other tests need the cores. No number changes."""
    cpu = PRESETS["cpu"]
    with pytest.MonkeyPatch.context() as patch:
        config = {**cpu.config, "session.intra_op.allow_spinning": "0"}
        patch.setitem(PRESETS, "cpu", cpu._replace(config=config))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that makes a folder once for all tests, and for all processes that run them."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = root / "shared" / name
        path.parent.mkdir(exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                unfinished = path.with_name(f"unfinished-{path.name}")
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished)
                unfinished.rename(path)
        return path

    return folder


@pytest.fixture(scope="session")
def checkpoints(shared: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """Return a function from the name of a configuration to a checkpoint folder; `NAME/lookup` is its lookup form.

    "stdlib-mini" is the trained model. Tests must not change the folders; they copy them.
    """

    def checkpoint(name: str) -> Path:
        if name == "stdlib-mini":
            return STDLIB_MINI

        def make(folder: Path) -> None:
            model = random_model(CONFIGS[name.removesuffix("/lookup")])
            save_checkpoint(lookup_form(model) if name.endswith("/lookup") else model, folder)

        return shared(name.replace("/", "-"), make)

    return checkpoint


@pytest.fixture(scope="session")
def bundles(
    checkpoints: Callable[[str], Path], shared: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[..., Path]:
    """Return a function that exports a checkpoint, given its name, the experts' dtype and options of `export`.

    Tests must not change the bundles; they copy them.
    """

    def bundle(name: str, dtype: RowDtype = "float32", **options: Any) -> Path:
        _skip_without_kernel(options.get("graph"))
        digest = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:8] if options else "default"
        return shared(
            f"{name.replace('/', '-')}-{dtype}-{digest}.bundle",
            lambda folder: export(checkpoints(name), folder, experts_dtype=dtype, **options),
        )

    return bundle


def _skip_without_kernel(graph: GraphOptions | None) -> None:
    """Skip a test if the installed ONNX Runtime is too old for the graph (in `make test-lowest`)."""
    needed, found = MIN_ONNXRUNTIME_OF_INT8_KV, onnxruntime.__version__
    if graph and graph.kv_dtype == "int8" and _numbers(found) < _numbers(needed):
        pytest.skip(f"ONNX Runtime {found} has no kernel for an int8 KV cache, which needs {needed}")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:3]]


@pytest.fixture
def copied(bundles: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies one of `bundles` to `tmp_path / "bundle"`, for tests that change it."""
    return lambda *arguments, **options: shutil.copytree(bundles(*arguments, **options), tmp_path / "bundle")


@pytest.fixture(scope="session")
def stdlib_mini_bundle(bundles: Callable[..., Path]) -> Path:
    """Return the trained model as a float16 bundle."""
    return bundles("stdlib-mini", "float16")
