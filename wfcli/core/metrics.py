"""Logits to figures: top-1, negative log likelihood, calibration error.

T teachers, B images, C classes. Accuracies and errors are 0..1; percent is for tables.
"""

from __future__ import annotations

import math
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


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209), within 0..1."""
    share = right / images
    spread = Z_95**2 / images
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    # The ends are 0 and 1 but for rounding where no image, or every image, is right.
    return centre - half if right else 0.0, centre + half if right < images else 1.0
