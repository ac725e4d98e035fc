"""`wfcli list`: the generators of the index, what of ours is in the Hub's cache, and what the Hub has under a tag."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wfcli.core.hub_lists import Snapshot, TaggedModel, list_snapshots, list_tagged
from wfcli.core.pretrained import Pretrained, list_pretrained
from wfcli.core.safetensors_io import read_header
from wfcli.errors import CheckpointError

Kind = Literal["student", "teachers", "generator", "zoo"]
OF_GENERATORS = {"format", "preset", "cross_tokens"}  # keys of their config.json; timm's has none of them


@dataclass(frozen=True)
class ListConfig:
    """Options of `wfcli list`; `tag` and `limit` are for the Hub."""

    hub: bool = False  # ask the Hub too
    tag: str = "wfcli"
    limit: int = 50


@dataclass(frozen=True)
class Cached:
    """A student, a generator, a zoo or teachers of one, at one commit, in the Hub's cache."""

    kind: Kind
    repo: str
    commit: str
    size: int  # bytes, of what was fetched
    path: Path


@dataclass(frozen=True)
class OnHub:
    """A repository on the Hub; its kind as far as library and tags say it."""

    kind: Kind | None
    repo: str
    commit: str | None
    date: str | None  # of the last change


@dataclass(frozen=True)
class Tagged:
    """What the Hub has under a tag; `more` than these, perhaps."""

    tag: str
    models: tuple[OnHub, ...]
    more: bool


@dataclass(frozen=True)
class ListResult:
    """All that is known by name; `hub` is None where it was not asked."""

    pretrained: tuple[Pretrained, ...]
    cached: tuple[Cached, ...]
    hub: Tagged | None


def list_known(config: ListConfig) -> ListResult:
    """List generators, the cache, and the Hub if it is to be asked.

    Raises:
        SourceError: the index or the cache cannot be read, or the Hub not be reached.
    """
    pretrained = tuple(list_pretrained())
    cached = tuple(
        Cached(kind, one.repo, one.commit, one.size, one.folder)
        for one in list_snapshots()
        if (kind := _kind_of_files(one)) is not None
    )
    if not config.hub:
        return ListResult(pretrained, cached, None)
    models, more = list_tagged(config.tag, config.limit)
    found = tuple(OnHub(_kind_of_tags(one), one.repo, one.commit, one.date) for one in models)
    return ListResult(pretrained, cached, Tagged(config.tag, found, more))


def _kind_of_files(one: Snapshot) -> Kind | None:
    """Recognise what wfcli has made by its files; None for anything else, damaged files included."""
    if "teachers" in _keys(one.folder / "zoo.json"):
        return "zoo"
    if _keys(one.folder / "config.json") >= OF_GENERATORS:
        return "generator"
    weights = sorted(one.folder.glob("*.safetensors"))
    if not weights:
        return None
    try:
        made = json.loads(read_header(weights[0]).metadata.get("wfcli", "null"))  # one for all: a cache may be large
    except (CheckpointError, ValueError):
        return None
    if not isinstance(made, dict) or "verb" not in made:
        return None
    return "teachers" if made["verb"] == "train-teachers" else "student"


def _keys(file: Path) -> set[str]:
    """Return the keys of a JSON object; none where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def _kind_of_tags(one: TaggedModel) -> Kind | None:
    """Read what the cards that `push` writes say: of students the library is timm."""
    if one.library == "wfcli":
        return "zoo" if "zoo" in one.tags else "generator"
    return "student" if one.library == "timm" and "wfcli" in one.tags else None
