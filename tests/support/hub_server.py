"""A stand-in for the hub on 127.0.0.1: data sets are folders, and a download can stand still or be gated."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "2" * 40


class Hub(ThreadingHTTPServer):
    """Serves ``root/<owner>/<name>/…`` as data sets.

    `gated` data sets need a token, and "accepted" is the one that has accepted the conditions. `stalls` maps a path to
    the number of bytes after which its download stands still, once; `stalled` says that it does, `go_on` ends it.
    `served` counts the bytes sent of each path, `asked` lists all requests.
    """

    def __init__(self, root: Path, gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated = gated
        self.stalls: dict[str, int] = {}
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.served: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:  # a client that goes away is no news
        pass


@contextmanager
def serving(root: Path, gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    hub = Hub(root, gated)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(with_body=True, asked=json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, with_body: bool, asked: dict | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {self.path}")
        parts = path.strip("/").split("/")
        try:
            if parts[:2] == ["api", "datasets"]:
                repository, rest = "/".join(parts[2:4]), parts[4:]
                folder = self.server.root / repository
                if not folder.is_dir():
                    return self._refuse(404, "RepoNotFound")
                if rest[:1] == ["tree"]:
                    if not (folder / "/".join(rest[2:])).is_dir():
                        return self._refuse(404, "EntryNotFound")
                    return self._json(_tree(folder, "/".join(rest[2:]), "recursive=true" in self.path.lower()))
                if rest[:1] == ["paths-info"]:
                    wanted = (asked or {}).get("paths", [])
                    return self._json([_entry(folder, folder / name) for name in wanted if (folder / name).exists()])
                if rest and rest[0] != "revision":
                    return self._refuse(404, "EntryNotFound")
                return self._json(_info(folder, repository))
            if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
                return self._file("/".join(parts[1:3]), "/".join(parts[5:]), with_body)
            return self._refuse(404, "EntryNotFound")
        except BrokenPipeError:
            pass

    def _file(self, repository: str, name: str, with_body: bool) -> None:
        if not (self.server.root / repository).is_dir():
            return self._refuse(404, "RepoNotFound")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository in self.server.gated and token != "accepted":
            return self._refuse(403 if token else 401, "GatedRepo")
        file = self.server.root / repository / name
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        content = file.read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if self.headers.get("Range") else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            key = f"{repository}/{name}"
            until = self.server.stalls.pop(key, len(content))
            self.wfile.write(content[start:until])
            self.server.served[key] = self.server.served.get(key, 0) + max(0, until - start)
            if until < len(content):
                self.server.stalled.set()
                self.server.go_on.wait(30)
                self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _info(folder: Path, repository: str) -> dict:
    siblings = [
        {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": _etag(path)}
        for path in _files(folder)
    ]
    return {"id": repository, "sha": COMMIT, "private": False, "downloads": 0, "tags": [], "siblings": siblings}


def _entry(folder: Path, path: Path) -> dict:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    return {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}


def _tree(folder: Path, below: str, recursive: bool) -> list[dict]:
    start = folder / below
    return [_entry(folder, path) for path in sorted(start.rglob("*") if recursive else start.iterdir())]
