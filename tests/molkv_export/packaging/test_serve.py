"""The server for trying a site."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from molkv_export.packaging.serve import SiteServer, parse_range

_CONTENT = bytes(range(256)) * 4096  # 1 MiB, more than one piece


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with a few files; a secret is beside it."""
    folder = tmp_path / "site"
    (folder / "bundle").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "a b.mjs").write_text("1")
    (folder / "ort.wasm").write_text("2")
    (folder / "empty").write_text("")
    (folder / "bundle" / "experts.safetensors").write_bytes(_CONTENT)
    (folder / "linked").symlink_to("bundle/experts.safetensors")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (folder / "loop").symlink_to("loop")
    (folder / "leads-out").symlink_to(tmp_path / "outside")
    return folder


@pytest.fixture
def connection(site: Path) -> Iterator[http.client.HTTPConnection]:
    """Return one connection, which stays open, to a server of the folder."""
    with SiteServer(site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        yield connection
        connection.close()
        server.shutdown()
        thread.join()


def ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html?x=1", "text/html; charset=utf-8"),
        ("/a%20b.mjs", "text/javascript; charset=utf-8"),
        ("/ort.wasm", "application/wasm"),
        ("/bundle/experts.safetensors", "application/octet-stream"),
        ("/linked", "application/octet-stream"),
        ("/empty", "application/octet-stream"),
    ],
)
def test_files_have_their_type_and_headers_of_isolation(
    path: str, content_type: str, connection: http.client.HTTPConnection
) -> None:
    status, body, headers = ask(connection, path)
    assert (status, headers["Content-Type"], int(headers["Content-Length"])) == (200, content_type, len(body))
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5000-599999", 5000, 599_999),
        ("bytes=1048570-", 1_048_570, 1_048_575),
        ("bytes=1048570-9999999", 1_048_570, 1_048_575),
        ("bytes=-6", 1_048_570, 1_048_575),
    ],
)
def test_a_range_is_answered_with_its_bytes(
    asked: str, first: int, last: int, connection: http.client.HTTPConnection
) -> None:
    status, body, headers = ask(connection, "/bundle/experts.safetensors", Range=asked)
    assert (status, headers["Content-Range"]) == (206, f"bytes {first}-{last}/1048576")
    assert body == _CONTENT[first : last + 1]


@pytest.mark.parametrize(
    "asked", ["bytes=1048576-", "bytes=5-4", "bytes=-0", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "rows=0-1"]
)
def test_other_ranges_are_refused_with_the_size(asked: str, connection: http.client.HTTPConnection) -> None:
    status, _, headers = ask(connection, "/bundle/experts.safetensors", Range=asked)
    assert (status, headers["Content-Range"]) == (416, "bytes */1048576")


def test_an_empty_file_has_no_ranges() -> None:
    assert [parse_range(text, 0) for text in ("bytes=0-", "bytes=-1")] == [None, None]


def test_a_changed_file_is_answered_whole(connection: http.client.HTTPConnection, site: Path) -> None:
    file = site / "bundle" / "experts.safetensors"
    tag = ask(connection, "/bundle/experts.safetensors", "HEAD")[2]["ETag"]
    assert ask(connection, "/bundle/experts.safetensors", Range="bytes=0-9", If_Range=tag)[0] == 206
    assert ask(connection, "/bundle/experts.safetensors", If_None_Match=tag)[:2] == (304, b"")
    file.write_bytes(b"new content")
    status, body, headers = ask(connection, "/bundle/experts.safetensors", Range="bytes=0-2", If_Range=tag)
    assert (status, body) == (200, b"new content")
    assert headers["ETag"] != tag


def test_one_connection_serves_many_requests(connection: http.client.HTTPConnection) -> None:
    ask(connection, "/")
    socket = connection.sock
    assert ask(connection, "/missing")[0] == 404
    assert ask(connection, "/bundle/experts.safetensors", "HEAD")[:2] == (200, b"")
    assert ask(connection, "/", Range="bytes=99-")[0] == 416
    assert ask(connection, "/")[0] == 200
    assert connection.sock is socket


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/bundle/../../secret",
        "/bundle%2f..%2f..%2fsecret",
        "/..%5csecret",
        "//etc/passwd",
        "/%00",
        "/leads-out/secret",
        "/bundle",
        "/bundle/",
        "/a%20b.mjs/",
        "/" + "a" * 300,
        "/loop",
    ],
)
def test_nothing_outside_the_folder_is_served(path: str, connection: http.client.HTTPConnection) -> None:
    status, body, _ = ask(connection, path)
    assert (status, body) == (404, b"404 Not Found\n")


def test_only_this_machine_can_reach_it(site: Path) -> None:
    with SiteServer(site) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"
