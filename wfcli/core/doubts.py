"""Teachers that do not belong together, though their files fit: what their weights and their answers give away.

T teachers, B images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median_low

import torch
from torch import Tensor
from torch.nn import functional as F

from wfcli.core.metrics import wilson

NEAR = 0.25  # of the usual distance between teachers: an EMA and its raw copy lie far below, own fine-tunes above
FEWEST = 100  # images that say anything
MOVED = 0.15  # top-1 that another order of the classes must bring, at least
LIKE = 0.5  # cosine that heads of the same classes have, at least
CLEAR = 10.8  # chi-square of one degree of freedom, p = 0.001
MOST_CLASSES = 4096  # an order of more takes minutes to find
GAIN = 0.05  # top-1 that another normalisation must bring, at least


@dataclass(frozen=True)
class Reordered:
    """Classes that stand in another order: how much is right as they stand, and after renaming `moved` of them."""

    own: float  # 0..1: top-1, or of heads the mean cosine -1..1
    after: float
    moved: int


def near_copies(between: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Find pairs that are far nearer to each other than to most others: distances [T][T] of fine-tunes, T >= 3.

    The weights of a run and their moving average, or two epochs of it, count twice in every mean.
    """
    found = []
    for i, j in combinations(range(len(between)), 2):
        others = [min(between[i][k], between[j][k]) for k in range(len(between)) if k not in (i, j)]
        if others and between[i][j] < NEAR * median_low(others):
            found.append((i, j))
    return found


def reordered_answers(log_probs: Tensor, labels: Tensor) -> Reordered | None:
    """Tell from answers [B, C] to images with labels [B] whether a net knows the classes in another order; or None.

    The renaming that makes most answers right is an assignment (scipy). A class is renamed only where most answers of
    it mean the other one: a silo's net, which names what it never saw by a class that it knows, keeps its order.
    """
    classes = log_probs.shape[1]
    if len(labels) < FEWEST:
        return None
    hits = torch.bincount(log_probs.argmax(1) * classes + labels, minlength=classes**2).reshape(classes, classes)
    meant = hits[range(classes), _assign(hits.double())]
    renamed = (meant > hits.diagonal()) & (2 * meant > hits.sum(1))
    own = float(hits.trace()) / len(labels)
    after = float(torch.where(renamed, meant, hits.diagonal()).sum()) / len(labels)
    return Reordered(own, after, int(renamed.sum())) if after - own >= MOVED else None


def reordered_heads(heads: Sequence[Tensor]) -> list[Reordered | None]:
    """Tell of heads [C, N] of fine-tunes of one base which know the classes in another order than the others; T >= 3.

    A class's row, less the mean of all rows, points the way of its row in the mean of the other heads.
    """
    if len(heads) < 3 or not 3 <= heads[0].shape[0] <= MOST_CLASSES:
        return [None] * len(heads)
    centred = torch.stack([head.float() - head.float().mean(0) for head in heads])  # [T, C, N]
    found: list[Reordered | None] = []
    for head in centred:
        others = (centred.sum(0) - head) / (len(heads) - 1)
        likeness = F.normalize(head, dim=1) @ F.normalize(others, dim=1).T
        own, most = float(likeness.diagonal().mean()), float(likeness.amax(1).mean())
        if not _is_moved(own, most):  # no order can bring more than `most`
            found.append(None)
            continue
        order = _assign(likeness)
        after = float(likeness[range(len(head)), order].mean())
        found.append(Reordered(own, after, _moved(order)) if _is_moved(own, after) else None)
    # Where most seem to be moved there is no order that they have in common.
    return found if sum(one is not None for one in found) * 2 < len(heads) else [None] * len(heads)


def is_guessing(right: int, labels: Tensor) -> bool:
    """Tell whether so many right answers cannot be told from those of a net that always says the commonest class."""
    commonest = float(labels.bincount().max()) / len(labels)
    return len(labels) >= FEWEST and wilson(right, len(labels))[0] <= commonest


def is_better(own: Tensor, other: Tensor) -> bool:
    """Tell whether other answers to the same images are clearly more often right: bool [B] each (McNemar 1947)."""
    gained, lost = int((other & ~own).sum()), int((own & ~other).sum())
    return gained - lost >= GAIN * len(own) and (gained - lost) ** 2 > CLEAR * (gained + lost)


def _is_moved(own: float, after: float) -> bool:
    return after > LIKE and own < after / 2


def _assign(worth: Tensor) -> list[int]:
    from scipy.optimize import linear_sum_assignment

    return [int(place) for place in linear_sum_assignment(worth.numpy(), maximize=True)[1]]


def _moved(order: Sequence[int]) -> int:
    return sum(place != own for own, place in enumerate(order))
