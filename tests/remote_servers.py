"""Servers of remote folders on this machine, and the settings with which the libraries use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import TOKEN, Hub

CLOSED = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def hub(running_hub: Hub, hub_settings: pytest.MonkeyPatch) -> Hub:
    """An empty Hub. The token of HF_TOKEN may read and write everything."""
    running_hub.reset()
    use_hub(hub_settings, running_hub.url)
    return running_hub


@pytest.fixture
def hub_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> pytest.MonkeyPatch:  # noqa: ARG001
    """Settings of huggingface_hub that do not depend on the user's, for this process and new ones."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return monkeypatch


def use_hub(settings: pytest.MonkeyPatch, url: str) -> None:
    """Make huggingface_hub use a server, in this process and in new ones."""
    from huggingface_hub import constants

    settings.setenv("HF_ENDPOINT", url)
    settings.setattr(constants, "ENDPOINT", url)  # the library reads the environment when it is imported
    settings.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(scope="session")
def running_s3() -> Iterator[str]:
    """The address of a server of moto."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(running_s3: str, s3_settings: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket."""
    s3_settings.setenv("AWS_ENDPOINT_URL", running_s3)
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    pytest.importorskip("boto3").client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch, cache: Path) -> pytest.MonkeyPatch:  # noqa: ARG001
    """Settings of S3 that do not depend on the user's, for this process and new ones."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return monkeypatch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for downloads, which is empty."""
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
