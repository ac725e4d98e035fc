"""`wfcli pull`: fetch weights, a generator or a whole repository from the Hub, and say where they lie."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from wfcli.core.checkpoint import INDEX_SUFFIX, open_checkpoint
from wfcli.core.downloads import damage
from wfcli.core.hub import HubFile, fetch_all, fetch_beside, fetch_matching, fetch_weights
from wfcli.core.hub_names import SPELLING, HubName, parse_hub_name
from wfcli.core.outputs import atomic_folder, check_new_folder
from wfcli.core.sources import SUFFIXES
from wfcli.engine.hooks import Hooks, Silent
from wfcli.errors import CheckpointError, SourceError

BESIDE = ("config.json", "README.md")  # what timm and generators keep beside their weights


@dataclass(frozen=True)
class PullConfig:
    """Options of `wfcli pull`."""

    source: str
    output: Path | None = None  # None: they stay in the cache alone
    whole: bool = False  # all files of the repository


@dataclass(frozen=True)
class PulledFile:
    """A file, by its name in the repository."""

    name: str
    size: int
    path: Path


@dataclass(frozen=True)
class PullResult:
    """What was fetched, and where it lies."""

    repo: str
    commit: str
    folder: Path  # that holds the files, by their names in the repository
    files: tuple[PulledFile, ...]
    size: int  # bytes of all


def pull(config: PullConfig, hooks: Hooks | None = None) -> PullResult:
    """Fetch a source of the Hub into the cache, check it, and copy it to `config.output` if that is given.

    Raises:
        SourceError: it leads nowhere.
        CheckpointError: a file in the cache is damaged.
        OutputError: the output is there already, or cannot be written.
    """
    hooks = hooks or Silent()
    if not config.source.startswith("hf:"):
        raise SourceError(f"{config.source}: expected a source on the Hub", hint=f"write {SPELLING}")
    name = parse_hub_name(config.source)
    if config.whole and name.file is not None:
        raise SourceError(f"{config.source}: names a file, and --all means all of them", hint="leave one of them out")
    if config.output is not None:
        check_new_folder(config.output)
    found = _fetch(name, config.whole)
    _check(found, hooks)
    commit = found[0].commit
    folder = found[0].path.parents[found[0].file.count("/")]
    if config.output is not None:
        with atomic_folder(config.output) as made:
            for one in found:
                (made / one.file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(one.path, made / one.file)
        folder = config.output
    files = tuple(PulledFile(one.file, one.path.stat().st_size, folder / one.file) for one in found)
    return PullResult(name.repo, commit, folder, files, sum(file.size for file in files))


def _fetch(name: HubName, whole: bool) -> list[HubFile]:
    """Return all that belongs to a source, each file once."""
    if whole:
        root = fetch_all(name)
        files = [path for path in sorted(root.path.rglob("*")) if path.is_file()]
        return [HubFile(path, root.commit, path.relative_to(root.path).as_posix()) for path in files]
    if name.is_pattern:
        return [file for one in fetch_matching(name, SUFFIXES) for file in _with_shards(one)]
    try:
        weights = fetch_weights(name)
    except SourceError as error:
        if name.file is None and "none of " in error.problems[0]:
            hint = f"fetch all of it: wfcli pull {name.text} --all; or name a file: {SPELLING}"
            raise SourceError(*error.problems, hint=hint) from error
        raise
    beside = [] if name.file else [found for file in BESIDE if (found := fetch_beside(name, weights, file))]
    return [*_with_shards(weights), *beside]


def _with_shards(one: HubFile) -> list[HubFile]:
    """Return a file, or an index and its shards: which of them are real the checkpoint says."""
    if not one.file.endswith(INDEX_SUFFIX):
        return [one]
    folder = one.file.rpartition("/")[0]
    shards = [shard for shard in open_checkpoint(one.path).files if shard != one.path]
    return [one, *(HubFile(path, one.commit, f"{folder}/{path.name}" if folder else path.name) for path in shards)]


def _check(found: list[HubFile], hooks: Hooks) -> None:
    """Compare the files with the digests that the Hub has told."""
    problems = []
    for done, one in enumerate(found):
        hooks.progress("checking", done, len(found))
        if (said := damage(one.file, one.path)) is not None:
            problems.append(said)
    hooks.progress("checking", len(found), len(found))
    if problems:
        raise CheckpointError(*problems, hint="delete these files, and fetch them again")
