"""A small Hugging Face hub on loopback, which its real client talks to: datasets and their commits.

It keeps one branch of each repository. Files beyond a size go by way of LFS, as the hub has it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

#: Bytes from which a file is a large one; so small that a test's shard has both kinds.
LARGE = 4000


@dataclass
class Hub:
    """The repositories, and what befell them."""

    repositories: dict[str, dict[str, bytes]]  #: files by path
    objects: dict[str, bytes] = field(default_factory=dict)  #: what LFS has, by SHA-256
    commits: list[list[str]] = field(default_factory=list)  #: the paths of each, "-" before removed
    readonly: bool = False
    ignored: str = ""  #: ending of files that .gitignore keeps out
    busy: list[dict[str, str]] = field(default_factory=list)  #: headers of 429s to come at a commit
    log: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        """Return status, JSON or bytes, and headers."""
        url = urlsplit(target)
        path = unquote(url.path)
        self.log.append(f"{method} {path}")
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, b"", {}
        for name, files in self.repositories.items():
            for before, act in (
                (f"/api/datasets/{name}", self._api),
                (f"/datasets/{name}/resolve/main/", self._resolve),
                (f"/datasets/{name}.git/info/lfs/objects/batch", self._batch),
            ):
                if path.startswith(before):
                    return act(files, path.removeprefix(before), body)
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}

    def _api(self, files, rest, body):
        what, _, inner = rest.strip("/").partition("/")
        inner = inner.removeprefix("main").strip("/")
        if what in ("", "revision"):
            return 200, {"id": "ada/set", "sha": "0" * 40, "siblings": [], "tags": []}, {}
        if what == "tree":
            return self._tree(files, inner)
        if what == "paths-info":
            paths = parse_qs(body.decode()).get("paths", [])
            return 200, [_about(path, files[path]) for path in paths if path in files], {}
        if self.readonly:
            return 403, {"error": "You have read access but not the required permissions"}, {}
        if what == "preupload":
            return (
                200,
                {"files": [self._mode(files, each) for each in json.loads(body)["files"]]},
                {},
            )
        if self.busy:
            return 429, {"error": "You have exceeded the rate limit for commits"}, self.busy.pop(0)
        return self._commit(files, [json.loads(line) for line in body.splitlines()])

    def _tree(self, files, folder):
        before = f"{folder}/" if folder else ""
        found, folders = [], set()
        for path in sorted(files):
            head, more, _ = path.removeprefix(before).partition("/")
            if path.startswith(before) and more:
                folders.add(before + head)
            elif path.startswith(before):
                found.append(_about(path, files[path]))
        if not found and not folders:
            return 404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"}
        made = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
        return 200, found + made, {}

    def _mode(self, files, asked):
        path = asked["path"]
        mode = "lfs" if asked["size"] >= LARGE else "regular"
        oid = files.get(path) and _oid(files[path], large=mode == "lfs")
        ignored = bool(self.ignored) and path.endswith(self.ignored)
        return {"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid}

    def _batch(self, files, rest, body):
        def entry(wanted):
            known = wanted["oid"] in self.objects
            actions = {} if known else {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
            return wanted | ({"actions": actions} if actions else {})

        return 200, {"objects": [entry(each) for each in json.loads(body)["objects"]]}, {}

    def _commit(self, files, lines):
        paths = []
        for each in lines[1:]:
            value = each["value"]
            path = value["path"]
            if each["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[path] = self.objects[value["oid"]]
            else:
                del files[path]
            paths.append(f"-{path}" if each["key"] == "deletedFile" else path)
        self.commits.append(paths)
        return (
            200,
            {"commitUrl": f"{self.url}/datasets/ada/set/commit/1", "commitOid": "1" * 40},
            {},
        )

    def _resolve(self, files, path, body):
        if path not in files:
            return 404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"}
        return 200, files[path], {"ETag": f'"{_oid(files[path], large=False)}"'}


def _oid(data: bytes, *, large: bool) -> str:
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _about(path: str, data: bytes) -> dict[str, object]:
    about = {"type": "file", "path": path, "size": len(data), "oid": _oid(data, large=False)}
    if len(data) >= LARGE:
        oid = _oid(data, large=True)
        about["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    return about


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer's body waits 40 ms for its head's ACK

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                status, answer, headers = hub.answer(self.command, self.path, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            if status == 200 and (asked := self.headers.get("Range")):
                first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
                status = 206
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                data = data[first : last + 1]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = _any

        def log_message(self, *_: object) -> None:
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def client(monkeypatch, *repositories: str) -> Iterator[Hub]:
    """Serve a hub with empty repositories, where the real client is at home."""
    from huggingface_hub import HfFileSystem, constants
    from huggingface_hub.utils import close_session

    with served(Hub({name: {} for name in repositories})) as there:
        monkeypatch.setattr(constants, "ENDPOINT", there.url)
        template = there.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        HfFileSystem.clear_instance_cache()
        yield there
        HfFileSystem.clear_instance_cache()
        close_session()
