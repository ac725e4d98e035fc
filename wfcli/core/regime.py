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

from wfcli.core.pieces import in_pieces

# Half the way from independent to equal; there the cosine between two of 2 / 6 / 20 teachers is 0.46 / 0.40 / 0.34.
# Fine-tunes and independent nets lie near the two ends (tests/test_regime), so the exact place does not matter.
LEAST_EXCESS = 0.5
STACKED = 1 << 15  # numbers of a piece that are looked at together, of each teacher


@dataclass(frozen=True)
class Regime:
    """Where the teachers come from, and the figures that say so."""

    shared_base: bool
    cosines: tuple[float, ...]  # per teacher, to the mean of all: median over the layers, -1..1
    distances: tuple[float, ...]  # per teacher: |w - mean| / |mean| over all layers, 0 where it is the mean
    between: tuple[tuple[float, ...], ...] = ()  # of each two teachers: |w - v| / |mean|, [T][T]

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
    """Compare T >= 2 teachers, layer by layer, with their mean. Every tensor is read once, T pieces at a time.

    Only floating-point weights of two and more dimensions count: biases and norms are alike in all nets. A layer that
    is zero or not finite says nothing and is left out; if none is left, all figures are 0.
    """
    assert len(teachers) >= 2, "a regime is a matter of several teachers"
    cosines: list[list[float]] = []  # per layer, per teacher
    apart = torch.zeros(len(teachers), len(teachers), dtype=torch.float64)
    square = 0.0
    for name in names:
        products = _products(teachers, name)
        if products is None or products.mean == 0 or not math.isfinite(products.mean):
            continue
        own, along = products.own.tolist(), products.along.tolist()
        cosines.append([a / math.sqrt(o * products.mean) if o else 0.0 for a, o in zip(along, own, strict=True)])
        apart += products.apart
        square += products.mean
    if not cosines:
        return Regime(False, (0.0,) * len(teachers), (0.0,) * len(teachers))
    medians = tuple(median(layer[t] for layer in cosines) for t in range(len(teachers)))
    independent = 1 / math.sqrt(len(teachers))
    shared = all(_excess(cosine, independent) >= LEAST_EXCESS for cosine in medians)
    squares = apart.diagonal()
    between = (squares[:, None] + squares - 2 * apart).clamp_(min=0).sqrt() / math.sqrt(square)
    distances = (squares.sqrt() / math.sqrt(square)).tolist()
    return Regime(shared, medians, tuple(distances), tuple(tuple(row) for row in between.tolist()))


def _excess(cosine: float, independent: float) -> float:
    """Map the cosine of independent teachers to 0 and that of equal ones to 1."""
    return (cosine - independent) / (1 - independent)


@dataclass
class _Products:
    """Inner products of one tensor of T teachers, float64."""

    own: Tensor  # |w_t|^2, [T]
    along: Tensor  # w_t . mean, [T]
    apart: Tensor  # (w_s - mean) . (w_t - mean), [T, T]: taken by itself, as the others' difference is lost in rounding
    mean: float  # |mean|^2


def _products(teachers: Sequence[Mapping[str, Tensor]], name: str) -> _Products | None:
    """Return the products of one tensor; None for one that does not count."""
    own, along = torch.zeros(2, len(teachers), dtype=torch.float64)
    apart = torch.zeros(len(teachers), len(teachers), dtype=torch.float64)
    square = 0.0
    for pieces in zip(*(in_pieces(teacher, name) for teacher in teachers), strict=True):
        if pieces[0].ndim < 2 or not pieces[0].is_floating_point():
            return None
        flat = [piece.flatten() for piece in pieces]
        for begin in range(0, len(flat[0]), STACKED):
            rows = torch.stack([one[begin : begin + STACKED].float() for one in flat])  # [T, STACKED at most]
            mean = rows.mean(0)
            own += torch.linalg.vector_norm(rows, dim=1).double().square()
            along += (rows @ mean).double()
            rows.sub_(mean)
            apart += (rows @ rows.T).double()
            square += float(torch.dot(mean, mean))
    return _Products(own, along, apart, square)
