"""Datasets by name: the images of a role, under the classes that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wfcli.core.columns import image_column
from wfcli.core.data_sources import open_table, same_dataset
from wfcli.core.digits import Digits
from wfcli.core.images import Images, augment, iterate, normalise, to_input
from wfcli.core.roles import ROLES, part_of, rows_of
from wfcli.core.selection import parse_selection
from wfcli.core.tables import Table
from wfcli.errors import DataError

__all__ = [
    "ROLES", "DataSpec", "Images", "augment", "available_splits", "check_split", "check_unlabelled", "iterate",
    "load_class_names", "load_images", "load_labels", "load_unlabelled", "normalise", "same_dataset",
    "to_input",
]  # fmt: skip


@dataclass(frozen=True)
class DataSpec:
    """A dataset as the user names it: `source` ``digits``, a folder or ``hf:owner/name``; `classes` like ``0-9,20``."""

    source: str
    label_column: str | None = None
    classes: str | None = None


def load_images(spec: DataSpec, split: str, size: int, *, limit: int | None = None, seed: int = 0) -> Images:
    """Load the images of one role, decoded once; only the rows that are wanted are decoded.

    ``train`` is the training split without its validation part; ``teachers`` (7/9) and ``generator`` (2/9) divide it.
    ``validation`` is the dataset's own, else a tenth of the training split. All parts keep the shares of the classes,
    come from one fixed seed and do not depend on `classes`. With `limit`, at most so many images, drawn from `seed`.
    Images are brought to `size` (shorter side, then the centre); small square ones of one size are left as they are.

    Raises:
        DataError: no such dataset, split, column or class; images that cannot be read.
    """
    table = _open(spec.source)
    part, rows, labels, names = _rows(table, spec, split)
    if limit is not None and len(rows) > limit:
        chosen = np.sort(np.random.RandomState(seed % 2**32).permutation(len(rows))[:limit])
        rows, labels = rows[chosen], labels[chosen]
    pixels = table.pixels(part, rows, size)
    return Images(spec.source, split, pixels, torch.from_numpy(labels).long(), names, table.flip)


def load_unlabelled(source: str, size: int, *, limit: int, seed: int = 0, label_column: str | None = None) -> Images:
    """Load at most `limit` images, drawn from `seed`, whatever they show: their labels are -1, and there are no names.

    They are of the training split, or of the only one. Where the dataset has labels they are those of the role
    ``train`` (`label_column` says by which labels roles were cut); else nothing says which images other commands
    validate on, and it is all of them.

    Raises:
        DataError: no such dataset, no training split among several, or images that cannot be read.
    """
    table = _open(source, labelled=False)
    part = _unlabelled_split(table)
    labelled = table.has_labels(label_column)
    rows = np.arange(table.rows(part))
    if labelled:
        rows = rows_of(table.splits, part, "train", table.labels(part, label_column)[0])
    chosen = np.sort(np.random.RandomState(seed % 2**32).permutation(rows)[:limit])
    if not len(chosen):
        raise DataError(f"data {source}: no images in it", hint="give a folder of images, or of parquet files")
    pixels = table.pixels(part, chosen, size)
    return Images(source, part, pixels, torch.full((len(chosen),), -1), (), table.flip)


def _unlabelled_split(table: Table | Digits) -> str:
    if "train" in table.splits:
        return "train"
    if len(table.splits) > 1:
        raise DataError(
            f"data {table.name}: no training split; it has {', '.join(table.splits)}",
            hint="give the folder of one of them",
        )
    return table.splits[0]


def load_labels(spec: DataSpec, split: str) -> list[int]:
    """Return the labels that `load_images` would give, without decoding an image.

    Raises:
        DataError: no such dataset, split, column or class; no image of the classes.
    """
    _, _, labels, _ = _rows(_open(spec.source), spec, split)
    return [int(label) for label in labels]


def load_class_names(spec: DataSpec) -> tuple[str, ...]:
    """Return the names of the classes that `spec` selects, in order, without decoding an image.

    Raises:
        DataError: no such dataset, column or class.
    """
    table = _open(spec.source)
    _, names = table.labels(table.splits[0], spec.label_column)
    return tuple(names[c] for c in parse_classes(spec.classes, names)) if spec.classes else names


def check_split(spec: DataSpec, split: str) -> None:
    """Make sure that the dataset has the images of a role, without decoding one.

    Raises:
        DataError: no such dataset, or it lacks the split.
    """
    table = _open(spec.source)
    part_of(table.name, table.splits, split)


def check_unlabelled(source: str) -> None:
    """Make sure that there are images to load without labels, without decoding one.

    Raises:
        DataError: no such dataset, no training split among several, or no column of images.
    """
    table = _open(source, labelled=False)
    _unlabelled_split(table)
    if isinstance(table, Table):
        image_column(table.name, table.features)


def available_splits(spec: DataSpec) -> tuple[str, ...]:
    """Return those of `ROLES` that the dataset can serve."""
    splits = _open(spec.source).splits
    return tuple(role for role in ROLES if role in splits or (role != "test" and "train" in splits))


def _rows(table: Table | Digits, spec: DataSpec, split: str) -> tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the part that holds a role, the rows of the role's images in it, their labels and the classes' names."""
    part = part_of(table.name, table.splits, split)
    all_labels, names = table.labels(part, spec.label_column)
    rows = rows_of(table.splits, part, split, all_labels)
    chosen = parse_classes(spec.classes, names) if spec.classes else list(range(len(names)))
    number = np.full(len(names), -1)
    number[chosen] = np.arange(len(chosen))
    rows = rows[number[all_labels[rows]] >= 0]
    if not len(rows):
        raise DataError(f"data {spec.source}: split {split!r} has no image of the classes {spec.classes or 'wanted'}")
    return part, rows, number[all_labels[rows]], tuple(names[c] for c in chosen)


def _open(source: str, labelled: bool = True) -> Table | Digits:
    return Digits() if source == "digits" else open_table(source, labelled)


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """Read a selection like ``0-9,20`` of the classes `names`, in the given order.

    Raises:
        DataError: not of that form, out of range, or a class twice.
    """
    return parse_selection(text, len(names), option="--classes", noun="class", plural="classes", owner="the data")
