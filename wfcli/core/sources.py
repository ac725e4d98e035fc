"""What a user types for a checkpoint or generator -> local files. No torch here.

The prefix decides: ``hf:`` is the Hub, ``pretrained:`` what wfcli knows by name, anything else is a path, a folder or
a glob. Another prefix is an error, never a guess.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from wfcli.core.checkpoint import INDEX_SUFFIX, PICKLE_SUFFIXES
from wfcli.core.hub import GENERATOR_FILES, fetch_generator, fetch_matching, fetch_weights
from wfcli.core.hub_names import SPELLING, parse_hub_name
from wfcli.core.paths import local_path
from wfcli.core.pretrained import BASE, find_files, list_pretrained
from wfcli.errors import Problems, SourceError

SPELLINGS = f"a file, a folder, a glob in quotes, {SPELLING}, or pretrained:NAME"
GENERATOR_SPELLINGS = "the folder that train-generator wrote, hf:owner/name[@revision], or pretrained:NAME"
SUFFIXES = (".safetensors", INDEX_SUFFIX, *PICKLE_SUFFIXES)
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C:\ is a path


@dataclass(frozen=True)
class Source:
    """What was typed, the local file or folder it leads to, what to call that, its commit if it is from the Hub."""

    text: str
    path: Path
    name: str
    revision: str | None = None

    @property
    def base_name(self) -> str:
        """The name for a file's provenance: without the folders that tell equal names apart in messages."""
        return _base_name(self.path) if self.revision is None else self.name


def resolve_source(text: str, what: str = "checkpoint") -> Source:
    """Resolve a source that must be one checkpoint: a file, shards (folder or index), ``hf:`` or ``pretrained:``.

    Raises:
        SourceError: it leads nowhere, or to several checkpoints.
    """
    found = _expand(text, what)
    if len(found) > 1:
        names = ", ".join(source.name for source in found[:6]) + (", ..." if len(found) > 6 else "")
        raise SourceError(f"{text}: expected one {what}, got {len(found)}: {names}", hint="name one of them")
    return found[0]


def resolve_sources(texts: Sequence[str], what: str = "teacher", problems: Problems | None = None) -> list[Source]:
    """Resolve sources in order; a glob or folder gives its checkpoints by name.

    Equal base names are told apart by parent folders. A file that is named twice is returned twice. With `problems`
    all that leads nowhere goes there instead of being raised, and the rest is returned.

    Raises:
        SourceError: all that leads nowhere; a glob that matches nothing is named.
    """
    collected = Problems() if problems is None else problems
    found: list[Source] = []
    for text in texts:
        with collected:
            found += _expand(text, what)
    if problems is None:
        collected.raise_all()
    return _with_unique_names(found)


def resolve_generator(text: str) -> Source:
    """Resolve a generator: a folder (config.json, model.safetensors), ``hf:owner/name[@revision]`` or ``pretrained:``.

    Raises:
        SourceError: it leads nowhere, or the two files are not there; an unknown name comes with the nearest one.
        CheckpointError: files of a ``pretrained:`` one are not those that its index means.
    """
    if text.startswith("hf:"):
        name = parse_hub_name(text)
        if name.file:
            raise SourceError(f"{text}: a generator is a whole repository, not a file", hint=f"write hf:{name.repo}")
        found = fetch_generator(name)
        return Source(text, found.path, name.repo, found.commit)
    if text.startswith("pretrained:"):
        wanted = text.removeprefix("pretrained:")
        known = {one.name: one for one in list_pretrained()}
        if wanted not in known:
            hint = _suggest(wanted, list(known), GENERATOR_SPELLINGS)
            raise SourceError(f"{text}: no such generator", hint=hint)
        files = find_files(known[wanted])
        return Source(text, files.folder, wanted, files.commit)
    path = _local(text)
    _refuse_unknown_prefix(text, path, GENERATOR_SPELLINGS)
    if not path.is_dir():
        got = "a file" if path.exists() else "no such folder"
        hint = _suggest(text, [one.name for one in list_pretrained()], GENERATOR_SPELLINGS)
        raise SourceError(f"{text}: expected the folder of a generator, got {got}", hint=hint)
    missing = [file for file in GENERATOR_FILES if not (path / file).is_file()]
    if missing:
        raise SourceError(
            f"{text}: holds no generator: {' and '.join(missing)} missing",
            hint=f"give {GENERATOR_SPELLINGS}",
        )
    return Source(text, path, _base_name(path))


def _expand(text: str, what: str) -> list[Source]:
    """Return the checkpoints of one source, at least one."""
    if not text:
        raise SourceError(f"an empty {what} name", hint=f"give {SPELLINGS}")
    if text.startswith("hf:"):
        name = parse_hub_name(text)
        fetched = fetch_matching(name, SUFFIXES) if name.is_pattern else [fetch_weights(name)]
        return [
            Source(text, one.path, f"{name.repo}:{one.file}" if name.file else name.repo, one.commit) for one in fetched
        ]
    if text.startswith("pretrained:"):
        return _expand_pretrained(text, what)
    path = _local(text)
    if path.is_dir():
        return _expand_folder(text, path, what)
    if path.exists():
        return [Source(text, path, path.name)]
    if glob.has_magic(text):
        return _expand_glob(text, path, what)
    _refuse_unknown_prefix(text, path, SPELLINGS)
    raise SourceError(f"{text}: no such {what} file", hint=_suggest_neighbour(path))


def _expand_folder(text: str, folder: Path, what: str) -> list[Source]:
    """A folder is one sharded checkpoint, or all the safetensors files in it."""
    if any(folder.glob(f"*{INDEX_SUFFIX}")):
        return [Source(text, folder, _base_name(folder))]
    files = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(".")]
    if files:
        return [Source(text, file, file.name) for file in files]
    others = sorted({file.suffix for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES})
    hint = f"name them by a glob: '{folder}/*{others[0]}'" if others else f"give {SPELLINGS}"
    raise SourceError(f"{text}: no *.safetensors for a {what} in this folder", hint=hint)


def _expand_glob(text: str, pattern: Path, what: str) -> list[Source]:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute too)
    indexed = {match.parent for match in matches if match.name.endswith(INDEX_SUFFIX)}
    found = [
        Source(text, match, match.name)
        for match in matches
        if (match.name.endswith(SUFFIXES) and (match.parent not in indexed or match.name.endswith(INDEX_SUFFIX)))
        or (match.is_dir() and any(match.glob(f"*{INDEX_SUFFIX}")))
    ]
    if not found:
        but = f", of {len(matches)} that it matches" if matches else ""
        raise SourceError(
            f"the {what} glob {text!r} matches no checkpoint{but}",
            hint="check it with ls; checkpoints end in " + ", ".join(SUFFIXES),
        )
    return found


def _expand_pretrained(text: str, what: str) -> list[Source]:
    """Return the safetensors files of a generator, or the one of them that is named, with or without its suffix."""
    name, _, wanted = text.removeprefix("pretrained:").partition("/")
    known = {one.name: one for one in list_pretrained()}
    weights = [file for file in known[name].sha256 if file.endswith(".safetensors")] if name in known else []
    files = [file for file in weights if wanted in ("", file, file.removesuffix(".safetensors"))]
    if not files:
        bases = [f"{one.name}/base" for one in known.values() if BASE in one.sha256]
        hint = _suggest(text.removeprefix("pretrained:"), bases, SPELLINGS)
        raise SourceError(f"{text}: no such {what} comes with wfcli", hint=hint)
    one = known[name]
    found = find_files(one, files)
    return [
        Source(text, found.folder / file, f"{one.hub}:{file}" if found.commit else file, found.commit) for file in files
    ]


def _refuse_unknown_prefix(text: str, path: Path, spellings: str) -> None:
    prefix = _PREFIX.match(text)
    if prefix and not path.exists():
        raise SourceError(f"{text}: unknown prefix {prefix[0]!r}", hint=f"give {spellings}")


def _suggest(wanted: str, known: Sequence[str], spellings: str) -> str:
    if not known:
        return f"nothing comes with this installation of wfcli; give {spellings}"
    nearest = get_close_matches(wanted, known, n=1)
    listed = "there are " + ", ".join(f"pretrained:{name}" for name in known)
    return f"did you mean pretrained:{nearest[0]}? {listed}" if nearest else listed


def _suggest_neighbour(path: Path) -> str:
    if str(path) == "-":
        return "names on standard input go where several checkpoints may stand: CKPT..., or --teachers"
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    nearest = get_close_matches(path.name, [file.name for file in folder.iterdir()], n=1)
    return f"did you mean {folder / nearest[0]}?" if nearest else f"give {SPELLINGS}"


def _local(text: str) -> Path:
    return local_path(text)


def _base_name(path: Path) -> str:
    return path.name if path.name not in ("", ".", "..") else path.resolve().name


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    """Tell equal names of different files apart: by more and more parent folders, or by the commit on the Hub."""
    sources = list(sources)
    for depth in range(2, max((len(source.path.absolute().parts) for source in sources), default=0)):
        files: dict[str, set[Path]] = {}
        for source in sources:
            files.setdefault(source.name, set()).add(source.path.absolute())
        if all(len(paths) == 1 for paths in files.values()):
            break
        sources = [_lengthened(source, depth) if len(files[source.name]) > 1 else source for source in sources]
    return sources


def _lengthened(source: Source, depth: int) -> Source:
    if source.revision is None:
        return replace(source, name="/".join(source.path.absolute().parts[1:][-depth:]))
    repo, colon, file = source.name.partition(":")
    return replace(source, name=f"{repo.partition('@')[0]}@{source.revision[:12]}{colon}{file}")
