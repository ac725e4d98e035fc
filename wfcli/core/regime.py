"""Do the teachers share a base? Told from their weights alone, one tensor at a time.

T teachers. The cosine of a teacher to the mean of all T is near 1, layer by layer, for fine-tunes of one base.
Independent weights of equal norm are orthogonal, and their cosine to the mean is 1/sqrt(T): 0.71 for two, 0.41 for six.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

# Half the way from independent to equal; there the cosine between two of 2 / 6 / 20 teachers is 0.46 / 0.40 / 0.34.
# Fine-tunes and independent nets lie near the two ends (tests/test_regime), so the exact place does not matter.
LEAST_EXCESS = 0.5


@dataclass(frozen=True)
class Regime:
    """Where the teachers come from, and the figures that say so."""

    shared_base: bool
    cosines: tuple[float, ...]  # per teacher, to the mean of all: median over the layers, -1..1
    distances: tuple[float, ...]  # per teacher: |w - mean| / |mean| over all layers, 0 where it is the mean

    def sentence(self, names: Sequence[str] = ()) -> str:
        """Say which regime it is; `names` (one per teacher) lets it name the strangers."""
        independent = 1 / math.sqrt(len(self.cosines))
        figures = (
            f"cosine to their mean {min(self.cosines):.2f} to {max(self.cosines):.2f}, {independent:.2f} if independent"
        )
        if self.shared_base:
            return f"the teachers share a base ({figures})"
        strangers = [
            name
            for name, cosine in zip(names, self.cosines, strict=False)
            if _excess(cosine, independent) < LEAST_EXCESS
        ]
        if 0 < len(strangers) <= len(self.cosines) - 2:  # the others do share one
            return f"the teachers do not share one base: {', '.join(strangers)} stand apart ({figures})"
        return f"the teachers were trained independently ({figures})"


def regime(teachers: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> Regime:
    """Compare T >= 2 teachers, layer by layer, with their mean. A few tensors are in memory at a time, for any T.

    Only floating-point weights of two and more dimensions count: biases and norms are alike in all nets. A layer that
    is zero or not finite says nothing and is left out; if none is left, all figures are 0.
    """
    assert len(teachers) >= 2, "a regime is a matter of several teachers"
    cosines: list[list[float]] = []  # per layer, per teacher
    apart = [0.0] * len(teachers)
    square = 0.0
    for name in names:
        mean = _mean(teachers, name)
        norm = _norm(mean) if mean is not None else 0.0
        if mean is None or norm == 0 or not math.isfinite(norm):
            continue
        layer = []
        for t, teacher in enumerate(teachers):
            weight = teacher[name].float()
            layer.append(_cosine(weight, mean, norm))
            apart[t] += _norm(weight - mean) ** 2
        cosines.append(layer)
        square += norm**2
    if not cosines:
        return Regime(False, (0.0,) * len(teachers), (0.0,) * len(teachers))
    medians = tuple(median(layer[t] for layer in cosines) for t in range(len(teachers)))
    independent = 1 / math.sqrt(len(teachers))
    shared = all(_excess(cosine, independent) >= LEAST_EXCESS for cosine in medians)
    return Regime(shared, medians, tuple(math.sqrt(a / square) for a in apart))


def _excess(cosine: float, independent: float) -> float:
    """Map the cosine of independent teachers to 0 and that of equal ones to 1."""
    return (cosine - independent) / (1 - independent)


def _mean(teachers: Sequence[Mapping[str, Tensor]], name: str) -> Tensor | None:
    total = teachers[0][name]
    if total.ndim < 2 or not total.is_floating_point():
        return None
    total = total.to(torch.float32, copy=True)
    for teacher in teachers[1:]:
        total += teacher[name]
    return total.div_(len(teachers))


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight))


def _cosine(weight: Tensor, mean: Tensor, norm: float) -> float:
    own = _norm(weight)
    return float(torch.dot(weight.flatten(), mean.flatten())) / (own * norm) if own else 0.0
