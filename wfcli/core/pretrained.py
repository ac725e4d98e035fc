"""The generators that go by a name, `pretrained:NAME`: their index, and their files, checked by it. No torch here.

`pretrained/index.json` is the one list of them; `examples/write_index.py` and the ship scripts beside it write it.

    format          of this file; raised when an older wfcli could not read it
    generators      NAME -> what is known of it:
      preset        universal, weightformer or specialised, as in its config.json; so are the next three:
      architectures the nets it was trained on (`trained_on` there), arguments included
      relations     of the teachers it was trained on: "base" (fine-tunes of one), "independent"
      knowledge     what those knew: "same" (the same images), "split" (each its own share)
      dataset       on the Hub, on whose classes those were fine-tuned
      counts        the numbers of teachers that a student had in `results`
      results       what its students reached, one entry for each table, net and number of teachers:
        table       the file in examples/results/
        group       the rows of that file: which teachers
        architecture  of the teachers, arguments included
        count       how many teachers a student had
        sets        how many sets of teachers the means are over
        soup, generator, ensemble  mean top-1 on test images, 0..1, all without data; `generator` over the seeds of
                    the training, of which one came with wfcli, as its card has it
      sha256        file -> its digest: config.json, model.safetensors, of a specialised one base.safetensors too
      hub           owner/name of the repository that holds the same files; empty until it is published
      revision      the whole id of the commit there; empty just where `hub` is

Whether the files came with this installation is not in it: they lie in the folder NAME beside it, or they do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wfcli.core.digests import file_digest
from wfcli.core.hub import GENERATOR_FILES, fetch_generator
from wfcli.core.hub_names import HubName
from wfcli.core.outputs import write_json
from wfcli.errors import CheckpointError, SourceError

FORMAT = 1
INDEX = "index.json"
BASE = "base.safetensors"  # that a specialised generator belongs to
AGAIN = "install wfcli again"
_COMMIT = re.compile(r"[0-9a-f]{40}")  # a branch may move on, away from the digests


@dataclass(frozen=True)
class Result:
    """What students of `count` teachers reached: mean top-1 over the sets of teachers, 0..1."""

    table: str
    group: str
    architecture: str
    count: int
    sets: int
    soup: float
    generator: float
    ensemble: float


@dataclass(frozen=True)
class Pretrained:
    """An entry of the index; `path` is the folder where its files lie if they are `here`."""

    name: str
    preset: str
    architectures: tuple[str, ...]
    relations: tuple[str, ...]
    knowledge: tuple[str, ...]
    dataset: str
    counts: tuple[int, ...]
    results: tuple[Result, ...]
    sha256: Mapping[str, str]
    hub: str
    revision: str
    path: Path
    here: bool


@dataclass(frozen=True)
class Found:
    """The folder that holds the files of an entry, and its commit if it is in the Hub's cache."""

    folder: Path
    commit: str | None


def pretrained_folder() -> Path:
    """Return the folder of what comes with the package: inside it once installed, beside it in the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


def list_pretrained(folder: Path | None = None) -> list[Pretrained]:
    """List the generators of the index, by name. Their files are not looked into.

    Raises:
        SourceError: the index is missing or damaged, or of another format.
    """
    folder = folder or pretrained_folder()
    path = folder / INDEX
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        if written["format"] != FORMAT:
            raise SourceError(f"{path}: got format {written['format']!r}, expected {FORMAT}", hint=AGAIN)
        return [_entry_from_json(folder, name, raw) for name, raw in sorted(written["generators"].items())]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})", hint=AGAIN) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: damaged ({type(error).__name__}: {error})", hint=AGAIN) from error


def find_files(one: Pretrained, files: Sequence[str] = GENERATOR_FILES) -> Found:
    """Find files of a generator, here or else on the Hub at the commit of the index, and check their digests.

    Raises:
        SourceError: they are in neither place, or the Hub does not deliver them.
        CheckpointError: their digests are not those of the index; all of them are named.
    """
    missing = [file for file in files if not (one.path / file).is_file()]
    if not missing:
        found = Found(one.path, None)
    elif one.hub:
        fetched = fetch_generator(HubName(f"pretrained:{one.name}", one.hub, one.revision, None), files)
        found = Found(fetched.path, fetched.commit)
    else:
        raise SourceError(
            f"pretrained:{one.name}: {' and '.join(missing)} not in {one.path}, and {INDEX} names no place on the Hub",
            hint=AGAIN,
        )
    problems = [
        f"{(found.folder / file).resolve()}: got sha256 {got[:12]}, expected {one.sha256[file][:12]} as in {INDEX}"
        for file in files
        if (got := file_digest(found.folder / file)) != one.sha256[file]
    ]
    if problems:
        again = f"delete these files, and try again; if they come again, {AGAIN}: {one.hub} holds other files"
        raise CheckpointError(*problems, hint=AGAIN if found.commit is None else again)
    return found


def describe_generator(folder: Path, dataset: str, results: Sequence[Result]) -> Pretrained:
    """Make the entry of the generator in a folder; its name is that of the folder. It is not published yet."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = (BASE, *GENERATOR_FILES)
    return Pretrained(
        name=folder.name,
        preset=config["preset"],
        architectures=tuple(config["trained_on"]),
        relations=tuple(config["relations"]),
        knowledge=tuple(config["knowledge"]),
        dataset=dataset,
        counts=tuple(sorted({result.count for result in results})),
        results=tuple(results),
        sha256={file: file_digest(folder / file) for file in files if (folder / file).is_file()},
        hub="",
        revision="",
        path=folder,
        here=True,
    )


def write_entry(entry: Pretrained, folder: Path) -> None:
    """Write an entry into the index of `folder`; the others stay, and so does its place on the Hub for the same files.

    Raises:
        SourceError: the index that is there is damaged.
        OutputError: the place cannot be written.
    """
    known = {one.name: one for one in list_pretrained(folder)} if (folder / INDEX).exists() else {}
    before = known.get(entry.name)
    if before is not None and before.sha256 == entry.sha256:
        entry = replace(entry, hub=before.hub, revision=before.revision)
    known[entry.name] = entry
    entries = {name: _entry_to_json(known[name]) for name in sorted(known)}
    write_json(folder / INDEX, {"format": FORMAT, "generators": entries})


def _entry_to_json(one: Pretrained) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if key not in ("name", "path", "here")}


def _entry_from_json(folder: Path, name: str, raw: Mapping[str, Any]) -> Pretrained:
    sha256 = {str(file): str(digest) for file, digest in raw["sha256"].items()}
    if not set(GENERATOR_FILES) <= sha256.keys():
        raise ValueError(f"{name}: sha256: got {sorted(sha256)}, expected {' and '.join(GENERATOR_FILES)} too")
    hub, revision = str(raw["hub"]), str(raw["revision"])
    if not (_COMMIT.fullmatch(revision) if hub else revision == ""):
        raise ValueError(f"{name}: revision: got {revision!r}, expected {'a whole commit id' if hub else 'none'}")
    return Pretrained(
        name=name,
        preset=str(raw["preset"]),
        architectures=tuple(raw["architectures"]),
        relations=tuple(raw["relations"]),
        knowledge=tuple(raw["knowledge"]),
        dataset=str(raw["dataset"]),
        counts=tuple(raw["counts"]),
        results=tuple(Result(**result) for result in raw["results"]),
        sha256=sha256,
        hub=hub,
        revision=revision,
        path=folder / name,
        here=all((folder / name / file).is_file() for file in GENERATOR_FILES),
    )
