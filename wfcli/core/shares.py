"""Who sees which images: the shares of the teachers of a zoo.

K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from wfcli.errors import DataError

ShareKind = Literal["same", "dirichlet", "disjoint"]
SHARE_KINDS: tuple[ShareKind, ...] = ("same", "dirichlet", "disjoint")
LEAST_IMAGES = 32
LEAST_CLASSES = 2
REDRAWS = 2000

Cap = int | tuple[int, int] | None
"""Most images of a share: one number for all teachers, or a range out of which each has its own; None: no limit."""

Indices = npt.NDArray[np.int64]


def parse_cap(text: str) -> Cap:
    """Read ``700`` or ``200-2000``.

    Raises:
        DataError: it is neither.
    """
    low, _, high = text.partition("-")
    if not low.isdecimal() or (high and not high.isdecimal()) or text.endswith("-"):
        raise DataError(f"--images-per-teacher: got {text!r}", hint="give a number (700) or a range (200-2000)")
    return (int(low), int(high)) if high else int(low)


def share_images(
    kind: str,
    labels: Sequence[int],
    teachers: int,
    *,
    concentration: float = 0.3,
    images_per_teacher: Cap = None,
    seed: int = 0,
) -> list[tuple[int, ...] | None]:
    """Say which images each teacher sees: sorted indices into `labels`, or None for all of them.

    ``same``: all see the same ones. ``dirichlet``: for every class, one Dirichlet(`concentration`) draw over the
    teachers says how its images are dealt out, so each image is seen once and the classes unevenly (Hsu et al. 2019,
    arXiv 1909.06335, with the draw over the clients, as is usual since). ``disjoint``: whole classes are dealt out.
    `images_per_teacher` cuts every share down at random; out of a range, each share to a size of its own, evenly drawn
    on a log scale.

    Raises:
        DataError: an unknown kind, or shares of at least 32 images and 2 classes do not come about.
    """
    found = np.asarray(labels, dtype=np.int64)
    draw = np.random.default_rng([seed, SHARE_KINDS.index(_known_kind(kind))])
    caps = _caps(images_per_teacher, teachers, len(found), seed)
    if kind == "same":
        cap = min(caps)
        if cap >= len(found):
            return [None] * teachers
        return [_indices(draw.choice(len(found), cap, replace=False))] * teachers
    if kind == "disjoint":
        return [_indices(s) for s in _capped(_deal_classes(found, teachers, draw), caps, draw)]
    if not concentration > 0:
        raise DataError(f"--concentration: got {concentration}, expected more than 0")
    return _deal_dirichlet(found, teachers, concentration, caps, draw)


def class_counts(labels: Sequence[int], images: Sequence[int] | None, classes: int) -> tuple[int, ...]:
    """Count the images of each class in one share."""
    found = np.asarray(labels, dtype=np.int64)
    chosen = found if images is None else found[np.asarray(images, dtype=np.int64)]
    return tuple(int(n) for n in np.bincount(chosen, minlength=classes))


def _known_kind(kind: str) -> ShareKind:
    if kind not in SHARE_KINDS:
        raise DataError(f"--shares: unknown kind {kind!r}", hint=f"use one of {', '.join(SHARE_KINDS)}")
    return kind


def _caps(wanted: Cap, teachers: int, images: int, seed: int) -> list[int]:
    """Return the most images of each share, whatever `wanted` says."""
    low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    if low is None or high is None:
        return [images] * teachers
    if not 2 <= low <= high:
        got = low if low == high else f"{low}-{high}"
        raise DataError(f"--images-per-teacher: got {got}, expected at least 2, or a range from at least 2 upwards")
    draw = np.random.default_rng([seed, len(SHARE_KINDS)])
    return [round(low * (high / low) ** float(draw.uniform())) for _ in range(teachers)]


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
    labels: Indices, teachers: int, concentration: float, caps: Sequence[int], draw: np.random.Generator
) -> list[tuple[int, ...] | None]:
    least = min(LEAST_IMAGES, *caps)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    possible = len(labels) >= least * teachers and len(members) >= LEAST_CLASSES
    for _ in range(REDRAWS if possible else 0):
        parts: list[list[Indices]] = [[] for _ in range(teachers)]
        for images in members:
            share = draw.dirichlet(np.full(teachers, concentration))  # [T]; nan where all draws underflow
            cuts = np.floor(np.cumsum(np.nan_to_num(share))[:-1] * len(images)).astype(np.int64)
            for part, piece in zip(parts, np.split(draw.permutation(images), cuts), strict=True):
                part.append(piece)
        shares = _capped([np.concatenate(part) for part in parts], caps, draw)
        if all(len(share) >= least and len(np.unique(labels[share])) >= LEAST_CLASSES for share in shares):
            return [_indices(share) for share in shares]
    raise DataError(
        f"dirichlet shares: {teachers} teachers of at least {least} images and {LEAST_CLASSES} classes each "
        f"do not come about from {len(labels)} images of {len(members)} classes at concentration {concentration}",
        hint="raise --concentration, ask for fewer teachers, or give more images",
    )


def _capped(shares: Sequence[Indices], caps: Sequence[int], draw: np.random.Generator) -> list[Indices]:
    return [
        share if len(share) <= cap else draw.choice(share, cap, replace=False)
        for share, cap in zip(shares, caps, strict=True)
    ]


def _indices(images: Indices) -> tuple[int, ...]:
    return tuple(int(i) for i in np.sort(images))
