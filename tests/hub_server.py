"""A server on this machine with those endpoints of the Hugging Face Hub that huggingface_hub uses for a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from molkv_bundle import MANIFEST, read_manifest

TOKEN = "hf_test"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_LFS = re.compile(r"\.(onnx|data|safetensors|bin)$")
_LARGEST_REGULAR_FILE = 1_000_000  # bytes


class Request(NamedTuple):
    """A request that the server has answered."""

    method: str
    path: str
    range: str  # the header, such as "bytes=0-99"; "" if there is none
    status: int
    size: int  # bytes of the answer, without headers


@dataclass
class Repo:
    """A repository: the files of each commit, as the hash of the content by name, and the commits of branches."""

    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """Add a commit, and return its id."""
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files.items())}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class Hub:
    """The server's state. Tests read the log, change files, and let requests fail."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.contents: dict[str, bytes | mmap.mmap] = {}  # by SHA-256
        self.log: list[Request] = []
        self.delay = 0.0  # seconds before each answer
        self.fail: Callable[[str, str], int] = lambda _method, _path: 0  # the status of an error; 0: none
        self.damage: Callable[[str, bytes], bytes] = lambda _range, data: data  # changes the content of an answer
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Forget everything."""
        self.__dict__ |= {"repos": {}, "contents": {}, "log": [], "delay": 0.0}
        self.fail, self.damage = (lambda _method, _path: 0), (lambda _range, data: data)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that changes files, without a request; return its id."""
        kept = self.repos.setdefault(repo, Repo())
        self.contents |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        new = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return kept.commit(branch, {**self.files(repo, branch), **new})

    def serve(self, repo: str, bundle: Path) -> None:
        """Add a commit with the files of a bundle, which are not read into RAM."""
        self.put(repo, {MANIFEST: (bundle / MANIFEST).read_bytes()})
        new = {name: info.sha256 for name, info in read_manifest(bundle).files.items()}
        for name, digest in new.items():
            with (bundle / name).open("rb") as file:
                self.contents[digest] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.repos[repo].commit("main", {**self.files(repo), **new})

    def remove(self, repo: str, name: str, branch: str = "main") -> None:
        """Add a commit without a file."""
        self.repos[repo].commit(branch, {n: h for n, h in self.files(repo, branch).items() if n != name})

    def files(self, repo: str, branch: str = "main") -> dict[str, str]:
        """Return the hash of the content of each file."""
        found = self.repos[repo]
        return dict(found.commits.get(found.branches.get(branch, ""), {}))

    def content(self, repo: str, name: str) -> bytes:
        """Return the content of a file of the branch "main"."""
        return self.contents[self.files(repo)[name]][:]

    def requests(self, pattern: str) -> list[Request]:
        """Return the requests whose method and path match a regular expression."""
        return [each for each in self.log if re.search(pattern, f"{each.method} {each.path}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        time.sleep(self.hub.delay)
        if status := self.hub.fail(self.command, path):
            return self._error(status, "", "an error that a test asked for")
        for method, pattern, answer in _ROUTES:
            if method in (self.command, "*") and (match := re.fullmatch(pattern, path)):
                return answer(self, **match.groupdict())
        return self._error(404, "EntryNotFound", f"no such endpoint: {path}")

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815 - names of the base class

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.hub.log.append(
            Request(self.command, unquote(self.path), self.headers.get("Range") or "", status, len(data))
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json")

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(b"{}", status, X_Error_Code=code, X_Error_Message=message)

    @property
    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may(self, repo: str, *, write: bool = False) -> Repo | None:
        """Return a repository if the client may read or write it; otherwise answer with an error."""
        found = self.hub.repos.get(repo)
        if found is None or (found.private and not self._has_token):
            self._error(404 if self._has_token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and not self._has_token:
            self._error(403, "", "You do not have the permission to write")
            return None
        return found

    def _revision(self, repo: Repo, revision: str) -> str | None:
        commit = repo.branches.get(revision, revision)
        if commit in repo.commits:
            return commit
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def whoami(self) -> None:
        if self._has_token:
            return self._json({"type": "user", "name": "owner", "auth": {"type": "access_token"}, "orgs": []})
        return self._error(401, "", "Invalid credentials")

    def create(self) -> None:
        if not self._has_token:
            return self._error(401, "", "Invalid username or password.")
        asked = json.loads(self._body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name'].rpartition('/')[2]}"
        if name in self.hub.repos:
            return self._json({"url": f"{self.hub.url}/{name}", "error": "You already created this"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private=private)
        self.hub.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, repo: str, revision: str = "main") -> None:
        if (found := self._may(repo)) and (commit := self._revision(found, revision)):
            siblings = [{"rfilename": name} for name in found.commits[commit]]
            self._json({"id": repo, "sha": commit, "private": found.private, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        if (found := self._may(repo)) and (commit := self._revision(found, revision)):
            self._json([self._entry(name, digest) for name, digest in found.commits[commit].items()])

    def paths_info(self, repo: str, revision: str) -> None:
        if (found := self._may(repo)) and (commit := self._revision(found, revision)):
            files, asked = found.commits[commit], json.loads(self._body)["paths"]
            self._json([self._entry(name, files[name]) for name in asked if name in files])

    def _entry(self, name: str, digest: str) -> dict[str, Any]:
        data = self.hub.contents[digest]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
        if _is_lfs(name, data):
            return {**entry, "lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
        return {**entry, "oid": _git_id(data[:])}

    def validate_yaml(self) -> None:
        has_header = json.loads(self._body)["content"].startswith("---\n")
        self._json({"errors": [], "warnings": [] if has_header else [{"message": "empty metadata"}]})

    def preupload(self, repo: str, revision: str) -> None:
        if (found := self._may(repo, write=True)) and (commit := self._revision(found, revision)):
            files = []
            for asked in json.loads(self._body)["files"]:
                name = asked["path"]
                is_lfs = bool(_LFS.search(name)) or asked["size"] > _LARGEST_REGULAR_FILE
                digest = found.commits[commit].get(name)
                known = digest if is_lfs or digest is None else _git_id(self.hub.contents[digest][:])
                mode = "lfs" if is_lfs else "regular"
                files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": known})
            self._json({"files": files})

    def batch(self, repo: str) -> None:
        if self._may(repo, write=True):
            objects = [
                {"oid": asked["oid"], "size": asked["size"]}
                if asked["oid"] in self.hub.contents
                else {**asked, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}
                for asked in json.loads(self._body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            return self._error(400, "", "the hash is wrong")
        self.hub.contents[oid] = self._body
        return self._send(b"")

    def commit(self, repo: str, revision: str) -> None:
        if (found := self._may(repo, write=True)) and (commit := self._revision(found, revision)):
            files = dict(found.commits[commit])
            for line in self._body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    data = base64.b64decode(value["content"])
                    files[value["path"]] = hashlib.sha256(data).hexdigest()
                    self.hub.contents[files[value["path"]]] = data
                elif item["key"] == "lfsFile":
                    if value["oid"] not in self.hub.contents:
                        return self._error(400, "", "the content was not uploaded")
                    files[value["path"]] = value["oid"]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            new = found.commit(revision, files)
            self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{new}", "commitOid": new})
        return None

    def branch(self, repo: str, revision: str) -> None:
        if found := self._may(repo, write=True):
            if revision in found.branches:
                return self._error(409, "", "the branch exists")
            found.branches[revision] = found.branches["main"]
            return self._json({})
        return None

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if (found := self._may(repo)) and (commit := self._revision(found, revision)):
            if (digest := found.commits[commit].get(name)) is None:
                return self._error(404, "EntryNotFound", f"no such file: {name}")
            if _is_lfs(name, self.hub.contents[digest]):
                return self._send(b"", 302, Location=f"{self.hub.url}/cdn/{digest}", X_Repo_Commit=commit)
            return self.content(digest)
        return None

    def content(self, oid: str) -> None:
        data, asked = self.hub.contents[oid], self.headers.get("Range") or ""
        if not (match := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)):
            return self._send(data[:], ETag=f'"{oid}"')
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return self._send(b"", 416, Content_Range=f"bytes */{len(data)}")
        part = self.hub.damage(asked, data[start:stop])
        return self._send(part, 206, ETag=f'"{oid}"', Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>[^/]+)", _Handler.branch),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.upload),
    ("*", r"/cdn/(?P<oid>\w+)", _Handler.content),
    ("*", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]


def _is_lfs(name: str, data: bytes | mmap.mmap) -> bool:
    return bool(_LFS.search(name)) or len(data) > _LARGEST_REGULAR_FILE


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
