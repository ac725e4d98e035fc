"""``hf:owner/name[@revision][:file]`` -> a file in huggingface_hub's own cache, and its commit. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from wfcli.core.bounded import read_json
from wfcli.core.hub_names import SPELLING, WEIGHT_FILES, HubName, explain
from wfcli.errors import SourceError

GENERATOR_FILES = ("config.json", "model.safetensors")
SHOWN = 6  # files that an error about a pattern names


@dataclass(frozen=True)
class HubFile:
    """A file or folder in the cache, the commit it belongs to, and its name in the repository ("" for a folder)."""

    path: Path
    commit: str
    file: str = ""


def fetch_weights(name: HubName) -> HubFile:
    """Fetch the named file, or the weights: model.safetensors, else its index and shards, else pytorch_model.bin.

    Raises:
        SourceError: no such repository, revision or file; no access; or the Hub cannot be reached.
    """
    errors: list[_MissingFileError] = []
    for file in (name.file,) if name.file else WEIGHT_FILES:
        try:
            # Once the Hub was out of reach, after the client's own retries, the rest is only looked for in the cache.
            found = _fetch(name, file, cached_only=any(error.unreachable for error in errors))
        except _MissingFileError as error:
            errors.append(error)
            continue
        if file.endswith(".index.json"):
            _fetch_shards(name, found)
        return found
    # Unreachable says more than "not there": a file that is not in the cache may well be on the Hub.
    raise next((error for error in errors if error.unreachable), errors[0]).explained


def fetch_generator(name: HubName, files: Sequence[str] = GENERATOR_FILES) -> HubFile:
    """Fetch config.json and model.safetensors of a generator, or others of its files; the path is their folder.

    Raises:
        SourceError: as for `fetch_weights`, or one of the files is not there.
    """
    folder = _snapshot(name, files)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise SourceError(
            f"{name.text}: holds no generator: {' and '.join(missing)} missing",
            hint="a generator is a repository with config.json and model.safetensors, as train-generator writes them",
        )
    return HubFile(folder, folder.name)


def fetch_matching(name: HubName, suffixes: Sequence[str]) -> list[HubFile]:
    """Fetch the checkpoints that a pattern matches, all at one commit, by name; `*` stays within a folder.

    Of a folder with an index of shards the index alone is given; its shards are fetched too.

    Raises:
        SourceError: as for `fetch_weights`; nothing matches: some of the files are named.
    """
    assert name.file is not None
    deeper = "*/" * (name.file.count("/") + 1) + "*"
    folder = _snapshot(name, [name.file], [deeper])
    known = _listing(name, folder.name)
    matches = [file for file in known if fnmatchcase(file, name.file) and not fnmatchcase(file, deeper)]
    indexed = {file.rpartition("/")[0] for file in matches if file.endswith(".index.json")}
    wanted = [
        file
        for file in sorted(matches)
        if file.endswith(tuple(suffixes)) and (file.rpartition("/")[0] not in indexed or file.endswith(".index.json"))
    ]
    if not wanted:
        raise _no_match(name, matches, known, suffixes)
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise explain(name, ", ".join(missing), ConnectionError())  # a cache that holds some of them
    found = [HubFile(folder / file, folder.name, file) for file in wanted]
    for one in found:
        if one.file.endswith(".index.json"):
            _fetch_shards(name, one)
    return found


def fetch_all(name: HubName) -> HubFile:
    """Fetch a whole repository; the path is the folder of its commit in the cache.

    Raises:
        SourceError: as for `fetch_weights`.
    """
    folder = _snapshot(name)
    return HubFile(folder, folder.name)


def fetch_beside(name: HubName, weights: HubFile, file: str) -> HubFile | None:
    """Fetch a file that stands beside the weights, at their commit; None where there is none, or offline none is known.

    Raises:
        SourceError: the Hub does not answer as it should.
    """
    from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache

    folder = weights.file.rpartition("/")[0]
    at = HubName(name.text, name.repo, weights.commit, name.file)
    wanted = f"{folder}/{file}" if folder else file
    if try_to_load_from_cache(name.repo, wanted, revision=weights.commit) is _CACHED_NO_EXIST:
        return None  # a commit stays what it is: the Hub is not asked again
    try:
        return _fetch(at, wanted, cached_only=False)
    except _MissingFileError as error:
        if error.unreachable and not constants.HF_HUB_OFFLINE:
            raise error.explained from error
        return None


def blob_digest(path: Path) -> str | None:
    """Return the sha256 that the Hub gave for a file in its cache, where it gave one: large files are called by it."""
    blob = path.resolve()
    is_sha256 = blob.parent.name == "blobs" and len(blob.name) == 64
    return blob.name if is_sha256 else None


@contextmanager
def bars_for_people() -> Iterator[None]:
    """Let the client draw its bars on a terminal alone; some of them do not look where they go."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:  # as the user has chosen
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class _MissingFileError(Exception):
    def __init__(self, explained: SourceError, unreachable: bool) -> None:
        super().__init__(str(explained))
        self.explained = explained
        self.unreachable = unreachable


def _fetch(name: HubName, file: str, cached_only: bool) -> HubFile:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name.repo, file, revision=name.revision, local_files_only=cached_only))
    except EntryNotFoundError as error:
        raise _MissingFileError(explain(name, file, error), isinstance(error, LocalEntryNotFoundError)) from error
    except Exception as error:  # whatever the client of the day raises for network, disk and permissions
        raise explain(name, file, error) from error
    return HubFile(path, _commit(path, file), file)


def _commit(path: Path, file: str) -> str:
    """The cache keeps a file at snapshots/<commit>/<file>."""
    return path.parents[file.count("/")].name


def _fetch_shards(name: HubName, index: HubFile) -> None:
    """Fetch the shards that an index names, at the commit of the index. What it says is checked when it is opened."""
    _snapshot(HubName(name.text, name.repo, index.commit, name.file), _shards(name, index))


def _shards(name: HubName, index: HubFile) -> list[str]:
    """Return the names in the repository of the shards that an index names."""
    try:
        shards = sorted({str(shard) for shard in read_json(index.path)["weight_map"].values()})
        folder = index.file.rpartition("/")[0]
        return [f"{folder}/{shard}" if folder else shard for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{name.text}: its index of shards has no weight_map", hint="name a file: " + SPELLING
        ) from error


def _snapshot(name: HubName, allowed: Sequence[str] | None = None, ignored: Sequence[str] | None = None) -> Path:
    """Fetch files of a repository at one commit; return their folder in the cache, which is called by the commit."""
    from huggingface_hub import snapshot_download

    allow = None if allowed is None else list(allowed)
    ignore = None if ignored is None else list(ignored)
    try:
        with bars_for_people():
            return Path(
                snapshot_download(name.repo, revision=name.revision, allow_patterns=allow, ignore_patterns=ignore)
            )
    except Exception as error:
        raise explain(name, name.file, error) from error


def _listing(name: HubName, commit: str) -> list[str]:
    """Return the names of all files of a commit; the client keeps them beside what it has fetched of it."""
    import huggingface_hub
    from huggingface_hub import HfApi

    if hasattr(huggingface_hub, "get_cached_repo_tree"):  # older clients keep no list
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        with suppress(CachedRepoTreeNotFoundError):  # the files were fetched one by one
            return [file.path for file in huggingface_hub.get_cached_repo_tree(name.repo, revision=commit)]
    try:
        return HfApi().list_repo_files(name.repo, revision=commit)
    except Exception as error:
        raise explain(name, "the list of the files", error) from error


def _no_match(name: HubName, matches: Sequence[str], known: Sequence[str], suffixes: Sequence[str]) -> SourceError:
    but = f", of {len(matches)} that it matches" if matches else ""
    # Checkpoints first: they are what the pattern is for.
    shown = sorted(known, key=lambda file: (not file.endswith(tuple(suffixes)), file))
    names = ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
    return SourceError(
        f"{name.text}: no checkpoint of {name.repo} matches {name.file}{but}; it has {names or 'no files'}",
        hint="checkpoints end in " + ", ".join(suffixes),
    )
