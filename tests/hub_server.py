"""A Hub in a thread: as much of its protocol as huggingface_hub needs to resolve a revision and fetch files.

    GET /api/models/{repo}/revision/{rev}      commit and file names
    GET /api/models/{repo}/tree/{rev}          file names, sizes, hashes
    HEAD, GET /{repo}/resolve/{rev}/{file}     ETag, X-Repo-Commit, Content-Length, and the bytes

Errors are told as the Hub tells them: status plus X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """The files at each commit, and which commit each branch or tag means."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    gated: bool = False


class HubServer:
    """Serve repositories on a port of this machine while the context lasts."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  # "HEAD /owner/name/resolve/main/model.safetensors"
        self.status: int | None = None  # answer everything with it
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def add(self, name: str, files: Mapping[str, bytes], branch: str = "main", gated: bool = False) -> str:
        """Add a commit to a repository and point `branch` to it; return its id."""
        repository = self.repositories.setdefault(name, Repository())
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.references[branch] = commit
        repository.gated = gated
        return commit

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port: from now on the Hub cannot be reached."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def use_hub(server: HubServer, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub, which reads its variables when it is imported, to the server and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name of the base class)
            pass

        def do_HEAD(self) -> None:
            self._answer(*_respond(hub, "HEAD", self.path))

        def do_GET(self) -> None:
            self._answer(*_respond(hub, "GET", self.path))

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


Answer = tuple[int, dict[str, str], bytes]


def _respond(hub: HubServer, method: str, url: str) -> Answer:
    path = unquote(urlsplit(url).path)
    hub.requests.append(f"{method} {path}")
    if hub.status is not None:
        return _error(hub.status, "", "out of order")
    found = re.fullmatch(
        r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<rev>[^/]+)/?"
        r"|/(?P<repo2>[^/]+/[^/]+)/resolve/(?P<rev2>[^/]+)/(?P<file>.+)",
        path,
    )
    if found is None:
        return _error(404, "", "no such page")
    repository = hub.repositories.get(found["repo"] or found["repo2"])
    if repository is None:
        return _error(401, "RepoNotFound", "Repository not found")
    if repository.gated:
        return _error(403, "GatedRepo", "Access is restricted")
    revision = unquote(found["rev"] or found["rev2"])
    commit = repository.references.get(revision, revision)
    if commit not in repository.commits:
        return _error(404, "RevisionNotFound", "Revision not found")
    files = repository.commits[commit]
    if found["what"] == "revision":
        return _json({"id": found["repo"], "sha": commit, "siblings": [{"rfilename": file} for file in files]})
    if found["what"] == "tree":
        entries = [{"type": "file", "path": f, "size": len(b), "oid": _hash(b)} for f, b in files.items()]
        return _json(entries)
    headers = {"X-Repo-Commit": commit}
    if found["file"] not in files:
        status, more, body = _error(404, "EntryNotFound", "Entry not found")
        return status, headers | more, body
    body = files[found["file"]]
    return 200, headers | {"ETag": f'"{_hash(body)}"', "Accept-Ranges": "bytes"}, body


def _hash(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def _json(content: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int, code: str, message: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message} if code else {}, b"{}"
