"""``hf:owner/name[@revision][:file]`` -> a file in huggingface_hub's own cache, and its commit. No torch here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from wfcli.errors import SourceError

SPELLING = "hf:owner/name[@revision][:file]"
# What a repository's weights are called, in the order in which they are looked for.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
GENERATOR_FILES = ("config.json", "model.safetensors")

_SPELLED = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?(:(?P<file>[^:]+))?")


@dataclass(frozen=True)
class HubName:
    """The parts of an ``hf:`` source."""

    text: str
    repo: str
    revision: str | None
    file: str | None


@dataclass(frozen=True)
class HubFile:
    """A file or folder in the cache and the commit it belongs to."""

    path: Path
    commit: str


def parse_hub_name(text: str) -> HubName:
    """Take ``hf:owner/name[@revision][:file]`` apart.

    Raises:
        SourceError: it is spelled otherwise, or the file leads out of the repository.
    """
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise SourceError(
            f"{text}: not a name on the Hub", hint=f"write {SPELLING}, for example hf:timm/resnet50.a1_in1k"
        )
    file = found["file"]
    if file is not None and (file.startswith("/") or ".." in file.split("/")):
        raise SourceError(f"{text}: {file} leads out of the repository", hint="name a file of the repository")
    return HubName(text, found["repo"], found["revision"], file)


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


def fetch_generator(name: HubName) -> HubFile:
    """Fetch config.json and model.safetensors of a generator; the path is the folder that holds them.

    Raises:
        SourceError: as for `fetch_weights`, or one of the two files is not there.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=list(GENERATOR_FILES)))
    except Exception as error:
        raise _explain(name, None, error) from error
    missing = [file for file in GENERATOR_FILES if not (folder / file).is_file()]
    if missing:
        raise SourceError(
            f"{name.text}: holds no generator: {' and '.join(missing)} missing",
            hint="a generator is a repository with config.json and model.safetensors, as train-generator writes them",
        )
    return HubFile(folder, folder.name)


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
        raise _MissingFileError(_explain(name, file, error), isinstance(error, LocalEntryNotFoundError)) from error
    except Exception as error:  # whatever the client of the day raises for network, disk and permissions
        raise _explain(name, file, error) from error
    return HubFile(path, _commit(path, file))


def _commit(path: Path, file: str) -> str:
    """The cache keeps a file at snapshots/<commit>/<file>."""
    return path.parents[file.count("/")].name


def _fetch_shards(name: HubName, index: HubFile) -> None:
    """Fetch the shards that an index names, at the commit of the index. What it says is checked when it is opened."""
    from huggingface_hub import snapshot_download

    try:
        shards = sorted(
            {str(shard) for shard in json.loads(index.path.read_text(encoding="utf-8"))["weight_map"].values()}
        )
        folder = (name.file or "").rpartition("/")[0]
        wanted = [f"{folder}/{shard}" if folder else shard for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{name.text}: its index of shards has no weight_map", hint="name a file: " + SPELLING
        ) from error
    try:
        snapshot_download(name.repo, revision=index.commit, allow_patterns=wanted)
    except Exception as error:
        raise _explain(name, None, error) from error


def _explain(name: HubName, file: str | None, error: Exception) -> SourceError:
    """Turn what huggingface_hub raises into one line and a hint. The order matters: the classes are nested."""
    from huggingface_hub import errors

    where = f"{name.text}: "
    at = f" at revision {name.revision}" if name.revision else ""
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{where}{name.repo} is gated, and you have no access",
            hint=f"accept its terms on the page of {name.repo}, then log in: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceError(
            f"{where}no repository {name.repo} on the Hub, or it is private",
            hint="check the spelling; for a private one log in first: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(
            f"{where}{name.repo} has no revision {name.revision}", hint="name a branch, a tag or a whole commit id"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError):
        return SourceError(
            f"{where}the Hub cannot be reached, and the cache does not hold {file or 'the files'}{at}",
            hint="check the connection and the variables HF_HUB_OFFLINE and HF_ENDPOINT, or give a local file",
        )
    if isinstance(error, errors.EntryNotFoundError):
        wanted = f"no file {file}" if name.file else "none of " + ", ".join(WEIGHT_FILES)
        return SourceError(f"{where}{wanted} in {name.repo}{at}", hint=f"name the file: {SPELLING}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return SourceError(f"{where}the Hub refuses access (HTTP {status})", hint="log in again: hf auth login")
    if isinstance(error, errors.HFValidationError):
        return SourceError(f"{where}not a name on the Hub", hint=f"write {SPELLING}")
    reason = f"HTTP {status}" if status else f"{type(error).__name__}: {error}".splitlines()[0]
    return SourceError(
        f"{where}the Hub did not deliver {file or 'the files'} ({reason})", hint="try again, or give a local file"
    )
