"""What is in the Hub's cache, and what the Hub has under a tag: both as huggingface_hub tells. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wfcli.core.hub_names import HubName, explain
from wfcli.errors import SourceError


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository of models in the cache: the folder of its files, and their bytes."""

    repo: str
    commit: str
    folder: Path
    size: int


@dataclass(frozen=True)
class TaggedModel:
    """What the Hub says of a repository when it lists it."""

    repo: str
    commit: str | None
    date: str | None  # of the last change: 2026-11-23
    library: str | None
    tags: tuple[str, ...]


def list_snapshots() -> list[Snapshot]:
    """List the commits in the cache, by repository and commit; no cache is an empty one.

    Raises:
        SourceError: the cache cannot be read.
    """
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:
        raise SourceError(f"the Hub's cache cannot be read ({error})", hint="check HF_HOME and HF_HUB_CACHE") from error
    found = [
        Snapshot(repo.repo_id, one.commit_hash, one.snapshot_path, one.size_on_disk)
        for repo in repositories
        if repo.repo_type == "model"
        for one in repo.revisions
    ]
    return sorted(found, key=lambda one: (one.repo, one.commit))


def list_tagged(tag: str, limit: int) -> tuple[list[TaggedModel], bool]:
    """List up to `limit` models of the Hub with a tag, in its own order, and say whether there are more.

    Raises:
        SourceError: the Hub cannot be reached, or does not answer as it should.
    """
    from huggingface_hub import HfApi

    try:
        found = list(HfApi(library_name="wfcli").list_models(filter=tag, limit=limit + 1, full=True))
    except Exception as error:  # whatever the client of the day raises for network and permissions
        told = explain(HubName(f"tag {tag}", "", None, None), "lists of models", error)
        raise SourceError(*told.problems, hint=(told.hint or "").removesuffix(", or give a local file")) from error
    models = [
        TaggedModel(
            repo=one.id,
            commit=one.sha,
            date=None if one.last_modified is None else one.last_modified.date().isoformat(),
            library=one.library_name,
            tags=tuple(one.tags or ()),
        )
        for one in found[:limit]
    ]
    return models, len(found) > limit
