"""Which column holds the images and which the labels, and what the labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wfcli.errors import DataError

IMAGE_NAMES = ("img", "image")
LABEL_NAMES = ("label", "fine_label")
MOST_CLASSES = 100_000  # larger integers are no class numbers


def image_column(name: str, features: Mapping[str, Any]) -> str:
    """Return the column of the images of the dataset `name`: ``img``, ``image``, else the first one that holds images.

    Raises:
        DataError: none does.
    """
    images = [column for column, feature in features.items() if _holds_images(feature)]
    if not images:
        raise DataError(f"data {name}: no column holds images; {_columns(features)}")
    return next((column for column in IMAGE_NAMES if column in images), images[0])


def label_column(name: str, features: Mapping[str, Any], wanted: str | None = None) -> str:
    """Return the column of the labels: the one `wanted`, else ``label``, ``fine_label``, else the only one with names.

    Raises:
        DataError: it is not there, holds no labels, or several could be meant.
    """
    hint = "name the column of the labels with --label-column"
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"data {name}: no column {wanted!r}; {_columns(features)}", hint=hint)
        if not _holds_labels(features[wanted]):
            raise DataError(f"data {name}: column {wanted!r} holds no class labels; {_columns(features)}", hint=hint)
        return wanted
    for usual in LABEL_NAMES:
        if usual in features and _holds_labels(features[usual]):
            return usual
    named = [column for column, feature in features.items() if class_names(feature) is not None]
    if len(named) != 1:
        problem = "several columns may be the labels" if named else "no column is called label or fine_label"
        raise DataError(f"data {name}: {problem}; {_columns(features)}", hint=hint)
    return named[0]


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that the dataset itself gives for a column, or None."""
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def name_classes(values: list[Any], others: Iterable[list[Any]]) -> tuple[tuple[str, ...], list[Any]]:
    """Find the classes of a column without names: their names, and `values` as class numbers (None stays None).

    Integers are numbers already; texts are numbered in alphabetical order. `others` are the values of the other splits:
    all splits have to agree.
    """
    found = {value for split in (values, *others) for value in split if value is not None}
    if all(isinstance(value, int) for value in found):
        return tuple(map(str, range(min(max(found, default=-1) + 1, MOST_CLASSES)))), values
    names = tuple(sorted(map(str, found)))
    number = {name: i for i, name in enumerate(names)}
    return names, [None if value is None else number[str(value)] for value in values]


def check_labels(values: Sequence[int | None], names: Sequence[str], where: str, column: str) -> np.ndarray:
    """Turn class numbers into int64 [rows].

    Raises:
        DataError: rows without a label, or with one beyond the names.
    """
    known = range(len(names))
    labels = np.array([value if type(value) is int and value in known else -1 for value in values], dtype=np.int64)
    wrong = np.flatnonzero(labels < 0)
    if len(wrong):
        raise DataError(
            f"{where}: {len(wrong)} of {len(labels)} rows have no label in {column!r}, the first is row {wrong[0]}",
            hint="choose another split, or another column with --label-column",
        )
    return labels


def _holds_images(feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, Mapping):  # parquet written without the Hub's metadata
        return set(feature) == {"bytes", "path"}
    return str(getattr(feature, "dtype", "")) in ("binary", "large_binary")


def _holds_labels(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return class_names(feature) is not None or dtype.startswith(("int", "uint", "string", "large_string"))


def _columns(features: Mapping[str, Any]) -> str:
    return f"it has the columns {', '.join(f'{column} ({_kind(f)})' for column, f in features.items())}"


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
