"""Which images play which role, cut from the splits that a dataset has.

Roles never mix: every image belongs to one of teachers, generator, validation and test, whatever classes are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wfcli.errors import DataError

ROLES = ("train", "validation", "test", "teachers", "generator")
"""``train`` is teachers and generator together."""

SEED = 20260101  # the same for everybody, for ever
VALIDATION_SHARE = 0.1  # of the training split, where the dataset has no validation split
TEACHERS_SHARE = 7 / 9  # of the rest; the generator has what is left


def part_of(name: str, splits: Sequence[str], role: str) -> str:
    """Return the split of the dataset `name` which holds the images of a role.

    Raises:
        DataError: none does, or there is no such role.
    """
    if role not in ROLES:
        raise DataError(f"unknown split {role!r}", hint=f"use {', '.join(ROLES)}")
    if role in splits:
        return role
    if role != "test" and "train" in splits:
        return "train"
    raise DataError(
        f"data {name}: no split for {role!r}; it has {', '.join(splits)}",
        hint="choose another --split" if role == "test" else "this needs a training split",
    )


def rows_of(splits: Sequence[str], part: str, role: str, labels: np.ndarray) -> np.ndarray:
    """Return the rows of a role within its split, ascending."""
    if part != "train":
        return np.arange(len(labels))
    validation = 0.0 if "validation" in splits else VALIDATION_SHARE
    rest = 1 - validation
    parts = stratified_parts(labels, (validation, rest * TEACHERS_SHARE, rest * (1 - TEACHERS_SHARE)), SEED)
    roles = {"validation": parts[:1], "teachers": parts[1:2], "generator": parts[2:], "train": parts[1:]}
    return np.sort(np.concatenate(roles[role]))


def stratified_parts(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Divide the rows into disjoint parts that keep the shares of the classes: ascending row numbers, one array a part.

    Each class is shuffled on its own, so its rows do not depend on the other classes.
    """
    ends = np.cumsum(shares)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # RandomState, not Generator: its numbers are frozen across versions of NumPy, and zoos remember these rows.
        rows = np.random.RandomState([seed, int(label)]).permutation(rows)
        cuts = np.floor(ends * len(rows) + 0.5 + 1e-9).astype(int)[:-1]
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]
