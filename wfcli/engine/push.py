"""`wfcli push`: a student, a generator or a zoo becomes a repository on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wfcli.core.hub_names import parse_hub_name
from wfcli.core.hub_upload import Destination, upload
from wfcli.core.outputs import scratch_folder
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.packages import Package, pack
from wfcli.errors import Problems, SourceError


@dataclass(frozen=True)
class PushConfig:
    """Options of `wfcli push`."""

    source: str
    target: str  # hf:owner/name
    private: bool = False
    revision: str | None = None  # the branch; None: the main one
    message: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    license: str | None = None
    metrics: Path | None = None  # JSON of eval or fuse


@dataclass(frozen=True)
class PushedFile:
    """A file of the repository."""

    name: str
    size: int


@dataclass(frozen=True)
class PushResult:
    """What was sent, or would be."""

    kind: str  # student, generator or zoo
    repo: str
    files: tuple[PushedFile, ...]
    card: str
    url: str | None  # None: nothing was sent
    commit: str | None


def push(config: PushConfig, hooks: Hooks | None = None) -> PushResult:
    """Check what is to be pushed, then send it as one commit; with `dry_run` nothing is sent.

    Raises:
        SourceError, CheckpointError, ArchitectureError, GeneratorError: it is not there, not ours, or damaged.
        OutputError: the Hub does not take it.
    """
    hooks = hooks or Silent()
    problems = Problems()
    with problems:
        repo, branch = _target(config)
    with scratch_folder("wfcli-push") as folder:
        with problems:
            package = pack(config, repo if not problems.errors else "", folder)
        problems.raise_all()
        files = tuple(PushedFile(name, package.size(name)) for name in package.files)
        url, commit = None, None
        if not config.dry_run:
            to = Destination(repo, branch, config.private, config.create_pr)
            sent = upload(to, package.files, config.message or _message(package))
            url, commit = sent.url, sent.commit
            if sent.left:
                hooks.warn(f"{repo} still holds {', '.join(sent.left)}, from an earlier commit: patterns find them too")
    return PushResult(package.kind, repo, files, package.card, url, commit)


def _target(config: PushConfig) -> tuple[str, str | None]:
    if not config.target.startswith("hf:"):
        raise SourceError(f"{config.target}: expected a repository on the Hub", hint="write hf:owner/name")
    name = parse_hub_name(config.target)
    if name.file is not None:
        raise SourceError(f"{config.target}: a push goes to a whole repository", hint=f"write hf:{name.repo}")
    if name.revision is not None and config.revision is not None:
        raise SourceError(f"{config.target}: got --revision {config.revision} too", hint="leave one of them out")
    return name.repo, config.revision or name.revision


def _message(package: Package) -> str:
    return f"A {package.kind} of wfcli"
