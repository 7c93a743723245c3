"""Serve a folder to browsers on this machine: `python -m molkv_export.packaging.serve FOLDER`.

The server of Python's standard library ignores range requests, and the web page of a bundle needs them. This server
also sends the headers that let the page use several threads. Only this machine can reach it.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import click

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
_BYTES_AT_ONCE = 256 * 1024
_IDLE_SECONDS = 60.0  # how long a connection may wait for its next request


class _Range(NamedTuple):
    """Bytes of a file: `first` to `last`, both included."""

    first: int
    last: int


class SiteServer(ThreadingHTTPServer):
    """A server of one folder, on this machine only. `url` is its address."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Listen on a port; 0: any free port."""
        self.folder = folder.resolve()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The address of the site."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: SiteServer
    protocol_version = "HTTP/1.1"  # keeps connections open
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # else the end of an answer waits for the browser's acknowledgement

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = file = None
        try:
            path = self._path()
            file = None if path is None else path.open("rb")
        except (OSError, ValueError, RuntimeError):  # a name that is too long or no address, or a loop of links
            pass
        if path is None or file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            with file:
                self._send(path, file, with_body=with_body)
        except OSError:  # the browser needs no more of the file, or the rest of the file cannot be read
            self.close_connection = True

    def _path(self) -> Path | None:
        """Return the file that the request names, if it is inside the folder."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in name or "\\" in name or ".." in name.split("/"):
            return None
        path = self.server.folder / name
        path = path / "index.html" if name in ("", ".") or name.endswith("/") else path
        # A file may be a link to a file elsewhere, as in Hugging Face's cache. A folder may not.
        if not path.parent.resolve().is_relative_to(self.server.folder) or not path.is_file():
            return None
        return path

    def _send(self, path: Path, file: BinaryIO, *, with_body: bool) -> None:
        status = path.stat()
        size, tag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        asked = self.headers.get("Range")
        if self.headers.get("If-None-Match") == tag and not asked:
            self._start(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        if self.headers.get("If-Range", tag) != tag:
            asked = None
        found = _Range(0, size - 1) if asked is None else parse_range(asked, size)
        if found is None:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
            return
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": _content_type(path)}
        headers["Content-Length"] = str(found.last - found.first + 1)
        if asked is not None:
            headers["Content-Range"] = f"bytes {found.first}-{found.last}/{size}"
        self._start(HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT, headers)
        if with_body:
            self._copy(file, found)

    def _copy(self, file: BinaryIO, found: _Range) -> None:
        file.seek(found.first)
        left = found.last - found.first + 1
        while left > 0:
            piece = file.read(min(left, _BYTES_AT_ONCE))
            if not piece:  # the file became shorter; the browser notices the missing bytes
                self.close_connection = True
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self._start(
            status, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **(headers or {})}
        )
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing: a page sends a request for each record."""


def parse_range(header: str, size: int) -> _Range | None:
    """Return the bytes that the header `Range` asks for; None if the file of this size does not have them.

    Several ranges in one header are refused, too: the page does not send them.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip(), re.ASCII)
    if not match or match[0].endswith("=-"):
        return None
    if not match[1]:  # the last bytes
        count = min(int(match[2]), size)
        return _Range(size - count, size - 1) if count else None
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    return _Range(first, last) if first <= last else None


def _content_type(path: Path) -> str:
    return _TYPES.get(path.suffix.lower(), "application/octet-stream")


@click.command("python -m molkv_export.packaging.serve")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free port.")
def main(folder: Path, port: int) -> None:
    """Serve FOLDER to browsers on this machine, until Ctrl-C."""
    try:
        server = SiteServer(folder, port)
    except OSError as error:
        raise click.ClickException(f"port {port}: {error.strerror}; choose another --port") from error
    with server:
        click.echo(f"{folder}: {server.url} (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo()


if __name__ == "__main__":
    main()
