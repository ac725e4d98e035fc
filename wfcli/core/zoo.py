"""A zoo: a folder of teachers of one architecture and one dataset, and who of them saw which images.

`zoo.json` stands beside the teachers. Everything in it is relative to the folder, so a zoo can be moved with its data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wfcli.core.architectures import Architecture, find_architecture
from wfcli.core.data import DataSpec
from wfcli.errors import CheckpointError, DataError, SourceError

FORMAT = 1
FILE = "zoo.json"
ROLES = {"teachers": "teachers", "generator": "generator", "validation": "validation", "test": "test"}
"""Which split serves which role; the four never share an image."""

ShareKind = Literal["same", "dirichlet", "disjoint"]
SHARE_KINDS: tuple[ShareKind, ...] = ("same", "dirichlet", "disjoint")
LEAST_IMAGES = 32
LEAST_CLASSES = 2
REDRAWS = 2000

Indices = npt.NDArray[np.int64]


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
    roles: Mapping[str, str]
    teachers: tuple[ZooTeacher, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The teachers' files, in order."""
        return tuple(self.folder / teacher.file for teacher in self.teachers)


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
        written = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or written.get("format") != FORMAT:
            got = written.get("format") if isinstance(written, dict) else type(written).__name__
            raise SourceError(f"{path}: got format {got!r}, expected {FORMAT}", hint="make the zoo again")
        zoo = _zoo_from_json(folder, written)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{path}: damaged ({type(error).__name__}: {error})"
        raise SourceError(message, hint="run wfcli train-teachers again") from error
    missing = [f"{path}: not there, though {FILE} names it" for path in zoo.paths if not path.is_file()]
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
        roles=written["roles"],
        teachers=tuple(_teacher_from_json(entry) for entry in written["teachers"]),
    )


def _teacher_from_json(entry: Mapping[str, Any]) -> ZooTeacher:
    file = str(entry["file"])
    if PurePosixPath(file).name != file:
        raise ValueError(f"the teacher {file!r} is not a plain file name")
    images = None if entry["images"] == "all" else tuple(int(i) for i in entry["images"])
    counts = tuple(int(n) for n in entry["class_counts"])
    return ZooTeacher(file, entry["sha256"], images, counts, entry["recipe"], float(entry["top1"]), int(entry["seed"]))


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
        "roles": dict(zoo.roles),
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
    if source == "digits" or source.startswith("hf:") or not Path(source).exists():
        return source
    relative = Path(os.path.relpath(Path(source).resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def absolute_source(source: str, folder: Path) -> str:
    """Undo `relative_source`."""
    return str((folder / source).resolve()) if source.startswith((".", "..")) else source


def share_images(
    kind: str,
    labels: Sequence[int],
    teachers: int,
    *,
    concentration: float = 0.3,
    images_per_teacher: int | None = None,
    seed: int = 0,
) -> list[tuple[int, ...] | None]:
    """Say which images each teacher sees: sorted indices into `labels`, or None for all of them.

    ``same``: all see the same ones. ``dirichlet``: for every class, one Dirichlet(`concentration`) draw over the
    teachers says how its images are dealt out, so each image is seen once and the classes unevenly (Hsu et al. 2019,
    arXiv 1909.06335, with the draw over the clients, as is usual since). ``disjoint``: whole classes are dealt out.
    `images_per_teacher` cuts every share down at random.

    Raises:
        DataError: an unknown kind, or shares of at least 32 images and 2 classes do not come about.
    """
    found = np.asarray(labels, dtype=np.int64)
    draw = np.random.default_rng([seed, SHARE_KINDS.index(_known_kind(kind))])
    if images_per_teacher is not None and images_per_teacher < 2:
        raise DataError(f"--images-per-teacher: got {images_per_teacher}, expected at least 2")
    if kind == "same":
        if images_per_teacher is None or images_per_teacher >= len(found):
            return [None] * teachers
        return [_indices(draw.choice(len(found), images_per_teacher, replace=False))] * teachers
    if kind == "disjoint":
        return [_indices(s) for s in _capped(_deal_classes(found, teachers, draw), images_per_teacher, draw)]
    if not concentration > 0:
        raise DataError(f"--concentration: got {concentration}, expected more than 0")
    return _deal_dirichlet(found, teachers, concentration, images_per_teacher, draw)


def class_counts(labels: Sequence[int], images: Sequence[int] | None, classes: int) -> tuple[int, ...]:
    """Count the images of each class in one share."""
    found = np.asarray(labels, dtype=np.int64)
    chosen = found if images is None else found[np.asarray(images, dtype=np.int64)]
    return tuple(int(n) for n in np.bincount(chosen, minlength=classes))


def _known_kind(kind: str) -> ShareKind:
    if kind not in SHARE_KINDS:
        raise DataError(f"--shares: unknown kind {kind!r}", hint=f"use one of {', '.join(SHARE_KINDS)}")
    return kind


def _deal_classes(labels: Indices, teachers: int, draw: np.random.Generator) -> list[Indices]:
    classes = draw.permutation(np.unique(labels))
    if len(classes) < LEAST_CLASSES * teachers:
        raise DataError(
            f"disjoint shares: {teachers} teachers of at least {LEAST_CLASSES} classes each need "
            f"{LEAST_CLASSES * teachers} classes, the data has {len(classes)}",
            hint=f"ask for at most {len(classes) // LEAST_CLASSES} teachers, or use --shares dirichlet",
        )
    return [np.flatnonzero(np.isin(labels, classes[teacher::teachers])) for teacher in range(teachers)]


def _deal_dirichlet(
    labels: Indices, teachers: int, concentration: float, cap: int | None, draw: np.random.Generator
) -> list[tuple[int, ...] | None]:
    least = LEAST_IMAGES if cap is None else min(LEAST_IMAGES, cap)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    possible = len(labels) >= least * teachers and len(members) >= LEAST_CLASSES
    for _ in range(REDRAWS if possible else 0):
        parts: list[list[Indices]] = [[] for _ in range(teachers)]
        for images in members:
            share = draw.dirichlet(np.full(teachers, concentration))  # [T]; nan where all draws underflow
            cuts = np.floor(np.cumsum(np.nan_to_num(share))[:-1] * len(images)).astype(np.int64)
            for part, piece in zip(parts, np.split(draw.permutation(images), cuts), strict=True):
                part.append(piece)
        shares = _capped([np.concatenate(part) for part in parts], cap, draw)
        if all(len(share) >= least and len(np.unique(labels[share])) >= LEAST_CLASSES for share in shares):
            return [_indices(share) for share in shares]
    raise DataError(
        f"dirichlet shares: {teachers} teachers of at least {least} images and {LEAST_CLASSES} classes each "
        f"do not come about from {len(labels)} images of {len(members)} classes at concentration {concentration}",
        hint="raise --concentration, ask for fewer teachers, or give more images",
    )


def _capped(shares: Sequence[Indices], cap: int | None, draw: np.random.Generator) -> list[Indices]:
    return [s if cap is None or len(s) <= cap else draw.choice(s, cap, replace=False) for s in shares]


def _indices(images: Indices) -> tuple[int, ...]:
    return tuple(int(i) for i in np.sort(images))
