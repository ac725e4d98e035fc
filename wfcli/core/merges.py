"""Merge methods that go tensor by tensor, from the weights alone.

T teachers. Most of them are a weighted sum whose weights follow from the inner products of the T versions of a tensor:
a first pass takes the products, a second one the sum, both in pieces of rows, so that memory does not grow with T. Two
look at single numbers (TIES, DARE); they read one teacher at a time. Running statistics of batch norms are no weights:
they are averaged by the teachers' weights, whatever the method; integers are taken as in the soup.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wfcli.core.layouts import STATISTICS
from wfcli.core.methods import soup_pieces, weighted_sum
from wfcli.core.pieces import in_pieces

EPS = 1e-12
TURNS = 10  # of the Karcher mean, as in mergekit
STILL = 1e-5  # of it: a smaller step is the last
OPPOSITE = -1 + 1e-6  # cosine below which there is no shortest way to go
PARALLEL = 0.9995  # cosine above which there is no great circle to speak of


@dataclass(frozen=True)
class Versions:
    """T versions of one tensor and, for methods that want it, the base's."""

    name: str
    teachers: Sequence[Mapping[str, Tensor]]
    base: Mapping[str, Tensor] | None
    weights: Sequence[float]  # of the teachers; they sum to 1
    params: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def whole(self) -> Iterator[Tensor]:
        """Yield the teachers' tensors, float32, one after the other."""
        yield from (teacher[self.name].float() for teacher in self.teachers)

    def origin(self) -> Tensor:
        """Return what the teachers are measured from, float32: the base's tensor, or else their mean."""
        if self.base is not None:
            return self.base[self.name].float()
        return weighted_sum(self.whole(), [1 / len(self.teachers)] * len(self.teachers))


def merge(method: str, versions: Versions) -> Iterator[Tensor]:
    """Yield the student's tensor by one of `RULES` or `MERGES`, in pieces of rows."""
    sample = next(in_pieces(versions.teachers[0], versions.name))
    if not sample.is_floating_point():
        yield from soup_pieces(versions.teachers, versions.name)
    elif versions.name.endswith(STATISTICS):
        yield from _sum(versions, torch.tensor([*versions.weights, 0.0]))
    elif method in MERGES:
        yield MERGES[method](versions)
    else:
        yield from _sum(versions, RULES[method](versions))


def _sum(versions: Versions, weights: Tensor) -> Iterator[Tensor]:
    """Yield the sum with weights [T] of the teachers, and of the base the last of [T + 1], in pieces."""
    sources = [*versions.teachers, *([versions.base] if versions.base is not None else [])]
    for pieces in zip(*(in_pieces(source, versions.name) for source in sources), strict=True):
        yield weighted_sum(pieces, weights.tolist()[: len(pieces)])


def products(versions: Versions, centred: bool) -> Tensor:
    """Return the inner products of the T versions, [T, T] float64; if `centred`, beyond the base, or else the mean."""
    total = torch.zeros(len(versions.teachers), len(versions.teachers), dtype=torch.float64)
    sources = [*versions.teachers, *([versions.base] if versions.base is not None else [])]
    for pieces in zip(*(in_pieces(source, versions.name) for source in sources), strict=True):
        rows = torch.stack([piece.flatten().double() for piece in pieces])
        own = rows[: len(versions.teachers)]
        if centred:
            own = own - (rows[-1] if versions.base is not None else own.mean(0))
        total += own @ own.T
    return total


def by_weights(versions: Versions) -> Tensor:
    """Weigh the teachers as the user says, or alike."""
    return torch.tensor([*versions.weights, 0.0], dtype=torch.float64)


def by_distance(versions: Versions) -> Tensor:
    """Weigh each teacher by a power of its distance from the mean: tensors that have moved farther know more."""
    square = products(Versions(versions.name, versions.teachers, None, versions.weights), centred=True).diagonal()
    relative = (square.clamp_min(0).sqrt() + EPS) / (square.max().clamp_min(0).sqrt() + EPS)
    shares = relative ** versions.params["power"]
    return torch.cat([shares / shares.sum(), torch.zeros(1)])


def slerp(versions: Versions) -> Tensor:
    """Go along the great circle from one of two teachers to the other; as far as the second one's weight says.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3. Nearly parallel tensors, and opposite ones,
    are interpolated linearly.
    """
    gram = products(versions, centred=False)
    lengths = gram.diagonal().sqrt()
    cosine = float((gram[0, 1] / (lengths[0] * lengths[1]).clamp_min(EPS)).clamp(-1, 1))
    first, second = versions.weights
    if abs(cosine) > PARALLEL:
        return torch.tensor([first, second, 0.0])
    angle = math.acos(cosine)
    return torch.tensor([math.sin(first * angle), math.sin(second * angle), 0.0]) / math.sin(angle)


def karcher(versions: Versions) -> Tensor:
    """Find the mean direction on the sphere, by steps of the mean logarithm; its length is the mean length.

    The mean lies in the span of the T directions u, so all is done on coefficients c and the cosines of the directions:
    the products are all that is read of the weights. Karcher 1977; 2603.04972.
    """
    gram = products(versions, centred=False)
    lengths = gram.diagonal().sqrt()
    valid = lengths > STILL
    if not valid.any():
        return torch.tensor([*versions.weights, 0.0])
    share = torch.where(valid, torch.tensor(versions.weights, dtype=torch.float64), 0.0)
    scale = float((torch.tensor(versions.weights, dtype=torch.float64) * lengths).sum())
    if not share.sum():  # all the weight is on teachers that are zero
        return torch.tensor([*versions.weights, 0.0])
    share = share / share.sum()
    cosines = gram / (lengths[:, None] * lengths).clamp_min(EPS)
    mean = share.clone()
    length = float((mean @ cosines @ mean).clamp_min(0).sqrt())
    mean = mean / length if length >= STILL else torch.eye(len(share), dtype=torch.float64)[int(valid.float().argmax())]
    for _ in range(TURNS):
        along = (cosines @ mean).clamp(-1, 1)
        if bool((along[valid] < OPPOSITE).any()):  # of opposite directions none is the mean
            return torch.tensor([*versions.weights, 0.0])
        angle = torch.arccos(along)
        pull = torch.where((angle >= STILL) & valid, share * angle / angle.sin().clamp_min(EPS), 0.0)
        step = pull - (pull * along).sum() * mean
        size = float((step @ cosines @ step).clamp_min(0).sqrt())
        if size < STILL:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / (mean @ cosines @ mean).sqrt()
    return torch.cat([torch.where(valid, mean / lengths.clamp_min(EPS), 0.0) * scale, torch.zeros(1)])


def task_arithmetic(versions: Versions) -> Tensor:
    """Add up what the teachers have learned beyond the base (Ilharco et al. 2022, 2212.04089, section 2)."""
    own = versions.params["scale"] * len(versions.teachers) * torch.tensor(versions.weights, dtype=torch.float64)
    return torch.cat([own, 1 - own.sum().reshape(1)])


def model_stock(versions: Versions) -> Tensor:
    """Go from the base towards the mean by N cos / (1 + (N - 1) cos), with the mean cosine of what was learned.

    Jang et al. 2024, 2403.19522, section 4.2. Teachers that have learned opposite things, on the whole, give the base:
    below 0 the rule has a pole.
    """
    gram, count = products(versions, centred=True), len(versions.teachers)
    lengths = gram.diagonal().clamp_min(0).sqrt()
    both = lengths[:, None] * lengths
    cosines = torch.where(both > 0, gram / both.clamp_min(1e-300), 0.0).clamp(-1, 1)
    cosine = max(0.0, float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))))
    share = count * cosine / (1 + (count - 1) * cosine)
    return torch.tensor([*[share / count] * count, 1 - share], dtype=torch.float64)


def ties(versions: Versions) -> Tensor:
    """Keep the largest of what each teacher has learned, elect a sign for every number, average those that have it.

    Yadav et al. 2023, 2306.01708, section 3. A second reading of the teachers saves keeping them.
    """
    origin, count = versions.origin(), len(versions.teachers)
    weights = [weight * count for weight in versions.weights]
    least = []
    elected = torch.zeros_like(origin)
    for tensor, weight in zip(versions.whole(), weights, strict=True):
        learned = tensor - origin
        least.append(_threshold(learned, versions.params["density"]))
        elected += weight * torch.where(learned.abs() >= least[-1], learned, 0.0)
    positive = elected >= 0
    total, share = torch.zeros_like(origin), torch.zeros_like(origin)
    for tensor, weight, limit in zip(versions.whole(), weights, least, strict=True):
        learned = tensor - origin
        kept = (learned.abs() >= limit) & (learned != 0) & ((learned > 0) == positive)
        total += torch.where(kept, weight * learned, 0.0)
        share += weight * kept
    return origin + versions.params["scale"] * total / torch.where(share == 0, 1.0, share)


def _threshold(learned: Tensor, density: float) -> float:
    """Return the least size of the largest `density` of some numbers; at least one of them."""
    number = learned.numel()
    if density >= 1 or number == 0:
        return 0.0
    kept = max(1, int(density * number))
    return float(learned.abs().flatten().kthvalue(number - kept + 1).values)


def dare(versions: Versions, masks: Sequence[Tensor] | None = None) -> Tensor:
    """Drop most of what each teacher has learned at random, make up for it by the rest, and average.

    Yu et al. 2023, 2311.03099, section 3.2. `masks` say what is kept of each teacher; without them they are drawn, from
    the seed and the tensor's name.
    """
    origin, density = versions.origin(), versions.params["density"]
    draw = torch.Generator().manual_seed(zlib.crc32(f"{versions.seed} {versions.name}".encode()))
    total = torch.zeros_like(origin)
    for number, (tensor, weight) in enumerate(zip(versions.whole(), versions.weights, strict=True)):
        kept = torch.rand(origin.shape, generator=draw) < density if masks is None else masks[number]
        total += weight * kept * (tensor - origin) / density
    return origin + versions.params["scale"] * total


RULES: Mapping[str, Callable[[Versions], Tensor]] = {
    "weighted": by_weights,
    "fedavg": by_weights,
    "distance": by_distance,
    "slerp": slerp,
    "karcher": karcher,
    "task-arithmetic": task_arithmetic,
    "model-stock": model_stock,
}
MERGES: Mapping[str, Callable[[Versions], Tensor]] = {"ties": ties, "dare": dare}
