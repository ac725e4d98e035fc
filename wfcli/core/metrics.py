"""Logits to figures: top-1, negative log likelihood, calibration error.

T teachers, N nets, B images, C classes. Accuracies and errors are 0..1; percent is for tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054  # normal quantile of 97.5 %
BINS = 15


@dataclass(frozen=True)
class Scores:
    """How well a model does on one split: top-1 with its 95 % interval, NLL in nats, ECE."""

    top1: float
    top1_ci: tuple[float, float]
    nll: float
    ece: float


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies between two bounds: how many, their mean confidence, the accuracy on them."""

    low: float
    high: float
    images: int
    confidence: float
    top1: float
    top1_ci: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """What each two of N nets have in common, as shares of the images: [N][N], the same both ways.

    Equal answers, right or wrong; and errors that both make. The diagonal of the latter is a net's own error.
    """

    same: tuple[tuple[float, ...], ...]
    both_wrong: tuple[tuple[float, ...], ...]


def score(log_probs: Tensor, labels: Tensor) -> Scores:
    """Score log probabilities [B, C] against labels [B].

    An image with a NaN counts as wrong; NLL and ECE are then NaN. ECE: 15 bins of equal width over the confidence in
    the predicted class (Guo et al. 2017, arXiv 1706.04599), by torchmetrics.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    broken = log_probs.isnan().any(dim=1)
    right = int(((log_probs.argmax(dim=1) == labels) & ~broken).sum())
    top1, interval = right / len(labels), wilson(right, len(labels))
    if broken.any():
        return Scores(top1, interval, math.nan, math.nan)
    nll = -log_probs.gather(1, labels[:, None]).double().mean()
    # torchmetrics takes anything outside 0..1 for logits, and exp(log_softmax) may be 1 + 1e-7.
    probabilities = log_probs.exp().clamp(0, 1)
    ece = multiclass_calibration_error(probabilities, labels, num_classes=log_probs.shape[1], n_bins=BINS, norm="l1")
    return Scores(top1, interval, float(nll), float(ece))


def ensemble(logits: Tensor) -> Tensor:
    """Return the log of the mean over the teachers of their probabilities: logits [T, B, C] -> [B, C]."""
    return torch.logsumexp(torch.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))


def reliability(log_probs: Tensor, labels: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """Sort log probabilities [B, C] into bins of equal width over the confidence in the predicted class.

    Bins without an image are left out, and so are images with a NaN. |accuracy - confidence|, weighted by the images of
    a bin, is the ECE of `score`.
    """
    fine = ~log_probs.isnan().any(dim=1)
    confidence, answer = log_probs[fine].exp().clamp(0, 1).max(dim=1)
    right = answer == labels[fine]
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True).sub(1).clamp(max=bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if count := int(inside.sum()):
            mean, correct = float(confidence[inside].double().mean()), int(right[inside].sum())
            bounds = number / bins, (number + 1) / bins
            found.append(Bin(*bounds, count, mean, correct / count, wilson(correct, count)))
    return tuple(found)


def agreement(log_probs: Sequence[Tensor], labels: Tensor) -> Agreement:
    """Compare what N nets answer to the same images: log probabilities [B, C] each, labels [B].

    An image with a NaN counts as wrong, and as another answer than that of any net.
    """
    fine = torch.stack([~one.isnan().any(dim=1) for one in log_probs])  # [N, B]
    answers = torch.stack([one.argmax(dim=1) for one in log_probs])
    same = (answers[:, None] == answers) & fine[:, None] & fine  # [N, N, B]
    wrong = (answers != labels) | ~fine
    both = wrong[:, None] & wrong
    return Agreement(_shares(same), _shares(both))


def _shares(found: Tensor) -> tuple[tuple[float, ...], ...]:
    images = found.shape[-1]
    return tuple(tuple(count / images for count in row) for row in found.sum(-1).tolist())


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209), within 0..1."""
    share = right / images
    spread = Z_95**2 / images
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    # The ends are 0 and 1 but for rounding where no image, or every image, is right.
    return centre - half if right else 0.0, centre + half if right < images else 1.0
