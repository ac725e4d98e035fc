"""The strongest simple rules we know for averaging fine-tunes by their weights: what a learned generator has to beat.

T teachers, N channels, C classes. All take state dicts (name -> tensor, timm's names) and give one; head is
("head.weight", "head.bias"). Integer tensors are taken as in the soup; so are the running statistics (recalibrate
afterwards).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from wfcli.core.methods import soup, soup_tensor, weighted_sum

State = Mapping[str, Tensor]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def weighted(states: Sequence[State], weights: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Average with `weights(name)` [T], which sum to 1, tensor by tensor."""
    return {
        name: soup_tensor(s[name] for s in states)
        if name.endswith(STATISTICS)
        else weighted_sum((s[name] for s in states), weights(name))
        for name in states[0]
    }


def shares(sizes: Tensor, power: float) -> Tensor:
    """Turn sizes [T, ...] into weights that sum to 1 over the T; teachers of no size at all weigh alike."""
    relative = (sizes + 1e-12) / (sizes + 1e-12).amax(0)  # against underflow in the power
    return relative**power / (relative**power).sum(0)


def fedavg(states: Sequence[State], images: Sequence[int]) -> dict[str, Tensor]:
    """Weight each teacher by its number of images (McMahan et al. 2017, arXiv 1602.05629)."""
    share = torch.tensor(images, dtype=torch.float32)
    share /= share.sum()
    return weighted(states, lambda name: share)


def by_distance(states: Sequence[State], power: float, per_layer: bool) -> dict[str, Tensor]:
    """Weight each teacher by its distance from the mean to a power, per tensor or over the whole net."""
    mean = soup([dict(s) for s in states])
    names = [name for name in mean if not name.endswith(STATISTICS)]
    distances = {n: torch.stack([(s[n] - mean[n]).float().norm() for s in states]) for n in names}
    whole = torch.stack([d.square() for d in distances.values()]).sum(0).sqrt()

    def weights(name: str) -> Tensor:
        return shares(distances[name] if per_layer else whole, power)

    return weighted(states, weights)


def head_by_norm(states: Sequence[State], head: tuple[str, str], power: float = 2.0) -> dict[str, Tensor]:
    """The soup, but each class row of the head (and its bias) weighted by the row's own distance from the mean row."""
    student = soup([dict(s) for s in states])
    rows = torch.stack([s[head[0]] for s in states])  # [T, C, N]
    weights = shares((rows - rows.mean(0)).norm(dim=2), power)  # [T, C]
    student[head[0]] = (weights[:, :, None] * rows).sum(0)
    student[head[1]] = (weights * torch.stack([s[head[1]] for s in states])).sum(0)
    return student


def head_seen_centred(states: Sequence[State], head: tuple[str, str]) -> dict[str, Tensor]:
    """The soup, but each teacher's head rows centred on the classes it saw, and averaged over those that saw the class.

    A teacher is taken to have seen the classes whose bias lies above its mean bias; a class that nobody saw is averaged
    over all.
    """
    student = soup([dict(s) for s in states])
    rows = torch.stack([s[head[0]] for s in states])  # [T, C, N]
    bias = torch.stack([s[head[1]] for s in states])  # [T, C]
    seen = (bias > bias.mean(1, keepdim=True)).float()
    share = seen / seen.sum(1, keepdim=True).clamp_min(1)
    rows = rows - (share[:, :, None] * rows).sum(1, keepdim=True)
    bias = bias - (share * bias).sum(1, keepdim=True)
    votes = torch.where(seen.sum(0) > 0, seen, torch.ones_like(seen))
    votes = votes / votes.sum(0)
    student[head[0]] = (votes[:, :, None] * rows).sum(0)
    student[head[1]] = (votes * bias).sum(0)
    return student


def all_heuristics(
    states: Sequence[State], head: tuple[str, str], images: Sequence[int]
) -> dict[str, dict[str, Tensor]]:
    """Return every heuristic by name."""
    found = {"FedAvg (by number of images)": fedavg(states, images)}
    for power in (1.0, 2.0, 4.0):
        for per_layer in (False, True):
            name = f"distance from the mean ^{power:.0f}, {'per layer' if per_layer else 'over all'}"
            found[name] = by_distance(states, power, per_layer)
    found["head rows by their distance ^2"] = head_by_norm(states, head)
    found["head rows centred on the classes seen"] = head_seen_centred(states, head)
    return found


LAST_ROBUST = "median, weight by weight"


def robust_heuristics(states: Sequence[State]) -> dict[str, dict[str, Tensor]]:
    """Return by name what trusts a teacher less the more it stands apart: for sets with bad ones among them."""
    found = {f"distance from the mean ^-{power}": by_distance(states, -power, False) for power in (1, 2, 4)}
    found["agreement with the others"] = by_agreement(states)
    found[LAST_ROBUST] = median(states)
    return found


def by_agreement(states: Sequence[State]) -> dict[str, Tensor]:
    """Weight each teacher by the mean cosine of its deviation from the mean to those of the others, above the least.

    Deviations from a mean point away from each other: two teachers' cosine is -1 / (T - 1) on average.
    """
    mean = soup([dict(s) for s in states])
    names = [name for name in mean if not name.endswith(STATISTICS)]
    gram = sum((apart @ apart.T for apart in (_apart(states, mean, name) for name in names)), torch.zeros(()))
    lengths = gram.diagonal().clamp_min(1e-12).sqrt()
    cosines = (gram / lengths / lengths[:, None]).fill_diagonal_(0).sum(1) / max(1, len(states) - 1)
    weights = shares(cosines + 1, 4.0)  # [T]; cosines are within -1..1
    return weighted(states, lambda name: weights)


def median(states: Sequence[State]) -> dict[str, Tensor]:
    """Take the median over the teachers of every weight (Yin et al. 2018, arXiv 1803.01498, section 4.1)."""
    student = soup([dict(s) for s in states])
    for name in student:
        if not name.endswith(STATISTICS):
            stacked = torch.stack([s[name].float() for s in states])
            student[name] = stacked.quantile(0.5, dim=0)  # of an even number the mean of the two in the middle
    return student


def _apart(states: Sequence[State], mean: State, name: str) -> Tensor:
    """Return the deviations from the mean, [T, all of the tensor]."""
    return torch.stack([(s[name].float() - mean[name].float()).flatten() for s in states])
