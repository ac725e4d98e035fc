"""A zoo: a folder of teachers of one architecture and one dataset, and who of them saw which images.

`zoo.json` stands beside the teachers. Everything in it is relative to the folder, so a zoo can be moved with its data.
"""

from __future__ import annotations

import glob
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wfcli.core.architectures import Architecture, find_architecture
from wfcli.core.bounded import read_json
from wfcli.core.data import DataSpec
from wfcli.core.forms import ANYTHING, misfit
from wfcli.core.hub_names import parse_hub_name
from wfcli.core.paths import is_file, is_there, local_path
from wfcli.core.records import ARCHITECTURE
from wfcli.errors import CheckpointError, SourceError

FORMAT = 1
FILE = "zoo.json"
MOST_ZOO = 1 << 28  # bytes: fifty teachers of a million images each have a list of a few hundred million letters
FORM = {
    "format": int,
    "architecture": {**ARCHITECTURE, "args": {"*": (str, float, bool)}},
    "data": {"source": str, "label_column": (str, None), "classes": (str, None)},
    "class_names": [str],
    "base": ({"name": str, "sha256": str, "*": str}, None),
    "shares": {"kind": str, "*": ANYTHING},
    "options?": ({"*": (str, float, bool)}, None),
    "teachers": [
        {
            "file": str,
            "sha256": str,
            "images": (str, [int]),
            "class_counts": [int],
            "recipe": {"*": ANYTHING},
            "top1": float,
            "seed": int,
        }
    ],
}


@dataclass(frozen=True)
class ZooTeacher:
    """One teacher of a zoo.

    `images` are indices into the split with the role ``teachers`` (None: all of it); `top1` (0..1) is on validation.
    """

    file: str
    sha256: str
    images: tuple[int, ...] | None
    class_counts: tuple[int, ...]
    recipe: Mapping[str, Any]
    top1: float
    seed: int


@dataclass(frozen=True)
class Zoo:
    """What `zoo.json` says, with paths made absolute. The weights themselves stay on disk."""

    folder: Path
    architecture: Architecture
    data: DataSpec
    class_names: tuple[str, ...]
    base: Mapping[str, str] | None
    shares: Mapping[str, Any]
    teachers: tuple[ZooTeacher, ...]
    options: Mapping[str, str | float | bool] | None = None  # the others of train-teachers; None: an older zoo.json

    @property
    def paths(self) -> tuple[Path, ...]:
        """The teachers' files, in order."""
        return tuple(self.folder / teacher.file for teacher in self.teachers)


def find_zoos(text: str) -> tuple[Path, ...]:
    """Return the folder that `text` names, or those that it is a glob of, in order.

    Raises:
        SourceError: a glob that no zoo matches, or a name on the Hub.
    """
    if text.startswith("hf:") and not is_there(text):
        name = parse_hub_name(text)
        spelled = f"hf:{name.repo}" + (f"@{name.revision}" if name.revision else "")
        raise SourceError(f"{text}: a zoo is a folder here", hint=f"fetch it: wfcli pull {spelled} --all -o zoo")
    if local_path(text).exists() or not glob.has_magic(text):
        return (Path(text),)
    matches = map(Path, sorted(glob.glob(text)))  # noqa: PTH207 (absolute too)
    found = tuple(folder for folder in matches if (folder / FILE).is_file())
    if not found:
        raise SourceError(f"{text}: no zoo matches", hint=f"a zoo is a folder with a {FILE}, written by train-teachers")
    return found


def read_zoo(folder: Path | str) -> Zoo:
    """Read `folder`/zoo.json and check that every teacher's file is there (their contents are not read).

    Raises:
        SourceError: no zoo.json there, or it is not one.
        CheckpointError: teachers that zoo.json names are missing (all of them listed).
    """
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise SourceError(f"{folder}: no {FILE} there", hint="a zoo is a folder written by wfcli train-teachers")
    try:
        written = read_json(path, MOST_ZOO)
        if not isinstance(written, dict) or written.get("format") != FORMAT:
            got = written.get("format") if isinstance(written, dict) else type(written).__name__
            raise SourceError(f"{path}: got format {reprlib.repr(got)}, expected {FORMAT}", hint="make the zoo again")
        if problem := misfit(written, FORM):
            raise ValueError(problem)
        zoo = _zoo_from_json(folder, written)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})", hint="check the file") from error
    except ValueError as error:
        raise SourceError(f"{path}: damaged ({error})", hint="run wfcli train-teachers again") from error
    missing = [f"{path}: not there, though {FILE} names it" for path in zoo.paths if not is_file(path)]
    if missing:
        raise CheckpointError(*missing, hint="run the same wfcli train-teachers again: it makes only what is missing")
    return zoo


def _zoo_from_json(folder: Path, written: Mapping[str, Any]) -> Zoo:
    data = written["data"]
    return Zoo(
        folder=folder,
        architecture=find_architecture(written["architecture"]["name"], written["architecture"]["args"]),
        data=DataSpec(absolute_source(data["source"], folder), data["label_column"], data["classes"]),
        class_names=tuple(written["class_names"]),
        base=written["base"],
        shares=written["shares"],
        teachers=tuple(_teacher_from_json(entry) for entry in written["teachers"]),
        options=written.get("options"),
    )


def _teacher_from_json(entry: Mapping[str, Any]) -> ZooTeacher:
    file, images = entry["file"], entry["images"]
    if PurePosixPath(file).name != file:
        raise ValueError(f"the teacher {file!r} is not a plain file name")
    if isinstance(images, str) and images != "all":
        raise ValueError(f"the teacher {file!r}: images: got {images!r}, expected all or a list of numbers")
    chosen = None if images == "all" else tuple(images)
    counts = tuple(entry["class_counts"])
    return ZooTeacher(file, entry["sha256"], chosen, counts, entry["recipe"], float(entry["top1"]), entry["seed"])


def zoo_to_json(zoo: Zoo) -> dict[str, Any]:
    """Give what `read_zoo` reads back: plain JSON values, a local data folder relative to the zoo's."""
    return {
        "format": FORMAT,
        "architecture": {"name": zoo.architecture.name, "args": dict(zoo.architecture.args)},
        "data": {
            "source": relative_source(zoo.data.source, zoo.folder),
            "label_column": zoo.data.label_column,
            "classes": zoo.data.classes,
        },
        "class_names": list(zoo.class_names),
        "base": None if zoo.base is None else dict(zoo.base),
        "shares": dict(zoo.shares),
        **({} if zoo.options is None else {"options": dict(zoo.options)}),
        "teachers": [
            {
                "file": teacher.file,
                "sha256": teacher.sha256,
                "images": "all" if teacher.images is None else list(teacher.images),
                "class_counts": list(teacher.class_counts),
                "recipe": dict(teacher.recipe),
                "top1": teacher.top1,
                "seed": teacher.seed,
            }
            for teacher in zoo.teachers
        ],
    }


def relative_source(source: str, folder: Path) -> str:
    """Spell a local data folder relative to `folder` (it then starts with a dot); names of datasets stay."""
    if source == "digits" or source.startswith("hf:") or not is_there(source):
        return source
    relative = Path(os.path.relpath(Path(source).resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def absolute_source(source: str, folder: Path) -> str:
    """Undo `relative_source`."""
    return str((folder / source).resolve()) if source.startswith((".", "..")) else source
