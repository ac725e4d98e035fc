"""A Hub in a thread: as much of its protocol as huggingface_hub needs to resolve, fetch and push.

    GET /api/models?filter={tag}&limit={n}         what has those tags in its card, in pages
    GET /api/models/{repo}[/revision/{rev}]        commit and file names
    GET /api/models/{repo}/tree/{rev}              file names, sizes, hashes
    HEAD, GET /{repo}/resolve/{rev}/{file}         ETag, X-Repo-Commit, Content-Length, the bytes or a range of them;
                                                   of large files 302 to the storage, X-Linked-Etag and -Size
    HEAD, GET /storage/{commit}/{repo}/{file}      the storage, under another name of this host: no token is to go there
    GET /api/whoami-v2, POST /api/validate-yaml, /api/repos/create, /api/models/{repo}/branch/{branch}
    POST /api/models/{repo}/preupload/{rev}        which files go up as LFS
    POST /{repo}.git/info/lfs/objects/batch        where those go; PUT /lfs/{sha256}, POST /lfs/{sha256}/verify
    POST /api/models/{repo}/commit/{rev}           NDJSON: a header, then files

Errors are told as the Hub tells them: status plus X-Error-Code. Whoever writes needs a token. What is asked of a
repository that was renamed is asked again of the new one: 307, with a relative place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pytest
import yaml

TOKEN = "hf_of_the_tests"
USER = "me"  # whose token that is, and in whose name it may write
LARGE = (".safetensors", ".bin", ".pt")  # kept as LFS


@dataclass
class Repository:
    """The files at each commit, and which commit each branch or tag means."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    gated: bool = False  # to all but those who have accepted its terms
    accepted: set[str] = field(default_factory=set)
    private: bool = False


@dataclass(frozen=True)
class Download:
    """A file that was sent: which part was asked for, the status, how many bytes went out, whether a token came."""

    path: str
    asked: str | None
    status: int
    sent: int
    token: bool


@dataclass
class Request:
    """One request, taken apart."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def user(self) -> str | None:
        """Whose token came with it."""
        return USER if self.headers.get("authorization") == f"Bearer {TOKEN}" else None


class HubServer:
    """Serve repositories on a port of this machine while the context lasts."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  # "HEAD /owner/name/resolve/main/model.safetensors"
        self.status: int | None = None  # answer everything with it
        self.busy = 0  # answer so many requests with 429, too many requests,
        self.busy_at = ""  # of those that have this in their path
        self.busy_for: int | None = None  # say in Retry-After for how many seconds
        self.renamed: dict[str, str] = {}  # repositories: old name -> new one
        self.ranges = True  # send the range that is asked for, or else always the whole file
        self.downloads: list[Download] = []
        self.cut = 0  # of so many downloads send a share of the bytes, then hang up
        self.keep = 0.5  # that share
        self.corrupt = False  # change the last byte of every file that is downloaded
        self.page = 100  # models on a page of a list
        self.large: dict[str, bytes] = {}  # sha256 -> what was uploaded as LFS
        self.messages: list[str] = []  # of the commits that were sent
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def add(
        self, name: str, files: Mapping[str, bytes], branch: str = "main", gated: bool = False, private: bool = False
    ) -> str:
        """Add a commit to a repository and point `branch` to it; return its id."""
        repository = self.repositories.setdefault(name, Repository())
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.references[branch] = commit
        repository.gated, repository.private = gated, private
        return commit

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files at the tip of a branch."""
        repository = self.repositories[name]
        return repository.commits[repository.references[branch]]

    @property
    def writes(self) -> list[str]:
        """The requests that change something, or would."""
        return [request for request in self.requests if request.startswith(("POST ", "PUT "))]

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


def use_hub(server: HubServer, cache: Any, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
    """Point huggingface_hub to the server and an empty cache.

    It reads its variables once, when it is imported, and keeps them as constants: for the tests in this process, each
    with a server on a port of its own and a cache of its own, they are set where it keeps them. Nothing it does is
    replaced. Processes that tests start read the variables themselves (`run_alone`).
    """
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # its server is another one
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache) + ".token")  # not that of whoever runs the tests
    monkeypatch.setenv("HF_TOKEN_PATH", str(cache) + ".token")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def run_alone(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with these variables more: the client reads them when it is imported."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def run_offline(hub: HubServer, cache: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with --offline, in a process of its own."""
    return run_alone("-m", "wfcli", "--offline", *args, HF_ENDPOINT=hub.endpoint, HF_HUB_CACHE=str(cache))


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name of the base class)
            pass

        def _take(self) -> None:
            body = self._body()
            url = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(url.path), parse_qs(url.query), headers, body)
            status, more, content = _respond(hub, request)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if "ETag" in more and status in (200, 206):  # a file
                if hub.cut:
                    hub.cut -= 1
                    content = content[: int(len(content) * hub.keep)]
                    self.close_connection = True
                asked = headers.get("range")
                hub.downloads.append(Download(request.path, asked, status, len(content), "authorization" in headers))
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_HEAD = do_GET = do_POST = do_PUT = _take  # noqa: N815 (the names of the base class)

    return Handler


Answer = tuple[int, dict[str, str], bytes]


def _respond(hub: HubServer, request: Request) -> Answer:
    hub.requests.append(f"{request.method} {request.path}")
    if hub.status is not None:
        return _error(hub.status, "", "out of order")
    if hub.busy and hub.busy_at in request.path:
        hub.busy -= 1
        status, more, body = _error(429, "", "too many requests")
        return status, more | ({} if hub.busy_for is None else {"Retry-After": str(hub.busy_for)}), body
    for old, new in hub.renamed.items():
        for before in (f"/{old}/", f"/api/models/{old}/"):
            if f"{request.path}/".startswith(before):
                query = f"?{urlencode(request.query, doseq=True)}" if request.query else ""
                return 307, {"Location": quote(request.path.replace(old, new, 1)) + query}, b""
    for pattern, respond in ROUTES:
        found = re.fullmatch(pattern, f"{request.method} {request.path}")
        if found is not None:
            return respond(hub, request, found)
    return _error(404, "", "no such page")


def _list(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    """Answer one page of the models with all the tags that are asked for, and where the next one is."""
    entries = []
    for name, repository in hub.repositories.items():
        card = _metadata(hub.files(name).get("README.md", b"").decode())
        if repository.private and request.user is None:
            continue
        if set(request.query.get("filter", ())) <= set(card.get("tags", ())):
            entry = {"id": name, "private": repository.private, "tags": card.get("tags", [])}
            if "full" in request.query:
                entry |= {"sha": repository.references["main"], "lastModified": "2026-11-23T10:00:00.000Z"}
            entries.append({**entry, "library_name": card.get("library_name")})
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + min(hub.page, int(request.query.get("limit", ["100"])[0]))
    status, headers, body = _json(entries[start:end])
    if end < len(entries):
        query = urlencode({**request.query, "cursor": end}, doseq=True)
        headers["Link"] = f'<{hub.endpoint}/api/models?{query}>; rel="next"'
    return status, headers, body


def _metadata(card: str) -> dict[str, Any]:
    """Return what stands in the YAML on top of a card."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    metadata = yaml.safe_load(block[1]) if block else None
    return metadata if isinstance(metadata, dict) else {}


def _read(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    """Answer what is asked about a repository: its commit, its files, one of them."""
    repository = hub.repositories.get(found["repo"])
    if repository is None or (repository.private and request.user is None):
        return _error(401, "RepoNotFound", "Repository not found")
    parts = found.groupdict()
    if repository.gated and request.user not in repository.accepted and (parts.get("what") or parts.get("file")):
        return _error(401 if request.user is None else 403, "GatedRepo", "Access is restricted")
    revision = parts.get("rev") or "main"
    commit = repository.references.get(revision, revision)
    if commit not in repository.commits:
        return _error(404, "RevisionNotFound", "Revision not found")
    files = repository.commits[commit]
    if parts.get("file") is not None:
        return _resolve(hub, request, found["repo"], commit, files, found["file"])
    if parts.get("what") == "tree":
        return _json([_tree_entry(name, body) for name, body in files.items()])
    siblings = [{"rfilename": name} for name in files]
    return _json({"id": found["repo"], "sha": commit, "private": repository.private, "siblings": siblings})


def _tree_entry(name: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": _git_id(body)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry


def _resolve(hub: HubServer, request: Request, repo: str, commit: str, files: Mapping[str, bytes], name: str) -> Answer:
    headers = {"X-Repo-Commit": commit}
    if name not in files:
        status, more, body = _error(404, "EntryNotFound", "Entry not found")
        return status, headers | more, body
    body = files[name]
    if not name.endswith(LARGE):
        return _send(hub, request, headers | {"ETag": f'"{_git_id(body)}"'}, body)
    headers |= {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
    storage = hub.endpoint.replace("127.0.0.1", "localhost")
    return 302, headers | {"Location": f"{storage}/storage/{commit}/{repo}/{quote(name)}"}, b"Found. Redirecting"


def _stored(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    body = hub.repositories[found["repo"]].commits[found["rev"]][found["file"]]
    name = found["file"].rpartition("/")[2]
    headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Content-Disposition": f'inline; filename="{name}";'}
    return _send(hub, request, headers, body)


def _send(hub: HubServer, request: Request, headers: dict[str, str], body: bytes) -> Answer:
    """Answer with a file, or the part of it that is asked for."""
    headers = headers | {"Accept-Ranges": "bytes"}
    if hub.corrupt:
        body = body[:-1] + bytes([body[-1] ^ 1])
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if asked is None or not hub.ranges:
        return 200, headers, body
    start = int(asked[1])
    return 206, headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:]


def _who(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if request.user is None:
        return _error(401, "", "Invalid user token")
    return _json({"type": "user", "name": request.user, "orgs": []})


def _check_card(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if not _metadata(json.loads(request.body)["content"]):
        return 400, {}, json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode()
    return _json({"errors": [], "warnings": []})


def _create(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    wanted = json.loads(request.body)
    owner = wanted.get("organization") or request.user
    if request.user is None:
        return _error(401, "", "Invalid username or password.")
    name = f"{owner}/{wanted['name']}"
    if name in hub.repositories:
        known = {"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"}
        return 409, {}, json.dumps(known).encode()
    if owner != request.user:
        return _error(403, "", "You don't have the rights to create a model under this namespace")
    hub.add(name, {".gitattributes": b""}, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return _json({"url": f"{hub.endpoint}/{name}", "name": name})


def _writable(hub: HubServer, request: Request, found: re.Match[str]) -> Answer | None:
    """Return the error of somebody who may not write there."""
    if request.user is None:
        return _error(401, "", "Invalid username or password.")
    if found["repo"] not in hub.repositories:
        return _error(404, "RepoNotFound", "Repository not found")
    if not found["repo"].startswith(f"{request.user}/") and "create_pr" not in request.query:
        return _error(403, "", "You are not allowed to write there")
    return None


def _branch(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if (refused := _writable(hub, request, found)) is not None:
        return refused
    references = hub.repositories[found["repo"]].references
    if found["rev"] in references:
        return _error(409, "", "Reference already exists")
    references[found["rev"]] = references["main"]
    return _json({})


def _preupload(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if (refused := _writable(hub, request, found)) is not None:
        return refused
    repository = hub.repositories[found["repo"]]
    if found["rev"] not in repository.references:
        return _error(404, "RevisionNotFound", "Revision not found")
    present = hub.files(found["repo"], found["rev"])
    files = []
    for asked in json.loads(request.body)["files"]:
        name = asked["path"]
        large = name.endswith(LARGE)
        body = present.get(name)
        known = None if body is None else hashlib.sha256(body).hexdigest() if large else _git_id(body)
        files.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": known})
    return _json({"files": files})


def _batch(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if request.user is None:
        return _error(401, "", "Invalid username or password.")
    objects = []
    for asked in json.loads(request.body)["objects"]:
        place = f"{hub.endpoint}/lfs/{asked['oid']}"
        actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
        objects.append({**asked, **({} if asked["oid"] in hub.large else {"actions": actions})})
    return _json({"transfer": "basic", "objects": objects})


def _put(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != found["oid"]:
        return _error(400, "", "other bytes than announced")
    hub.large[found["oid"]] = request.body
    return _json({})


def _verify(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    whole = len(hub.large.get(found["oid"], b"")) == json.loads(request.body)["size"]
    return _json({}) if whole else _error(404, "", "not there")


def _commit(hub: HubServer, request: Request, found: re.Match[str]) -> Answer:
    if (refused := _writable(hub, request, found)) is not None:
        return refused
    files = dict(hub.files(found["repo"], found["rev"]))
    message = ""
    for line in request.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            message = value["summary"]
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile" and value["oid"] in hub.large:
            files[value["path"]] = hub.large[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
        else:
            return _error(400, "", f"cannot commit {value['path']}")
    hub.messages.append(message)
    repository, more = hub.repositories[found["repo"]], {}
    branch = found["rev"]
    if "create_pr" in request.query:
        branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.references)}"
        page = f"{hub.endpoint}/{found['repo']}/discussions/{branch.rpartition('/')[2]}"
        more = {"pullRequestUrl": page}
    commit = hub.add(found["repo"], files, branch, repository.gated, repository.private)
    url = f"{hub.endpoint}/{found['repo']}/commit/{commit}"
    return _json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": "", **more})


REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<rev>refs/pr/\d+|[^/]+)"
ROUTES: tuple[tuple[str, Callable[[HubServer, Request, re.Match[str]], Answer]], ...] = (
    ("GET /api/models", _list),
    ("GET /api/whoami-v2", _who),
    ("POST /api/validate-yaml", _check_card),
    ("POST /api/repos/create", _create),
    (rf"GET /api/models/{REPO}(/(?P<what>revision|tree)/{REVISION}/?)?", _read),
    (rf"(HEAD|GET) /{REPO}/resolve/{REVISION}/(?P<file>.+)", _read),
    (rf"(HEAD|GET) /storage/(?P<rev>\w+)/{REPO}/(?P<file>.+)", _stored),
    (rf"POST /api/models/{REPO}/branch/(?P<rev>.+)", _branch),
    (rf"POST /api/models/{REPO}/preupload/{REVISION}", _preupload),
    (rf"POST /api/models/{REPO}/commit/{REVISION}", _commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", _batch),
    (r"PUT /lfs/(?P<oid>\w+)", _put),
    (r"POST /lfs/(?P<oid>\w+)/verify", _verify),
)


def _git_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _json(content: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int, code: str, message: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message} if code else {}, b"{}"
