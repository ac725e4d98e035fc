"""The merge methods, one list of them all; and the plain mean, which every other one falls back on.

T teachers. The mean reads the teachers one after the other and keeps a running sum, so memory does not grow with T.
Those of the other methods that go tensor by tensor are in `merges`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal

from wfcli.core.pieces import in_pieces

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Method:
    """What a merge method does and needs."""

    what: str  # one line
    paper: str = ""  # arXiv number
    base: Literal["", "may", "must"] = ""  # takes the teachers' common ancestor (may: without it, their mean)
    data: Literal["", "images", "labels"] = ""  # what it learns from
    align: bool = False  # for independent teachers: always brings them into one frame
    weights: bool = False  # takes --weights
    params: Mapping[str, float] = field(default_factory=dict)  # its own, with their defaults


METHODS = {
    "weightformer": Method("a trained generator mixes the teachers, weight by weight", "2210.01973"),
    "soup": Method("the plain mean of the weights", "2203.05482"),
    "weighted": Method("the mean by --weights", weights=True),
    "fedavg": Method("the mean by numbers of training images, from the files or --weights", "1602.05629", weights=True),
    "distance": Method("the mean, tensor by tensor, by a power of the distance from it", params={"power": 2.0}),
    "slerp": Method("two teachers: along the great circle between them", weights=True),
    "karcher": Method("the mean on the sphere, tensor by tensor, at the mean length", "2603.04972", weights=True),
    "task-arithmetic": Method(
        "the base plus `scale` times the sum of what the teachers have learned",
        "2212.04089",
        base="must",
        weights=True,
        params={"scale": 0.3},
    ),
    "ties": Method(
        "what the teachers have learned: the largest `density` of it, by the sign of the majority",
        "2306.01708",
        base="may",
        weights=True,
        params={"density": 0.2, "scale": 1.0},
    ),
    "dare": Method(
        "what they have learned: `density` of it at random, the larger for it, averaged",
        "2311.03099",
        base="may",
        weights=True,
        params={"density": 0.5, "scale": 1.0},
    ),
    "model-stock": Method("between base and mean, tensor by tensor, by the angles", "2403.19522", base="must"),
    "greedy": Method(
        "teachers from the best down, while the soup of them is no worse on validation images",
        "2203.05482",
        data="labels",
    ),
    "learned-soup": Method(
        "the mean, with weights a tensor fitted by gradient on validation images",
        "2203.05482",
        data="labels",
        params={"steps": 100, "lr": 0.1},
    ),
    "fisher": Method("the mean, number by number, by the teachers' Fisher information", "2111.09832", data="images"),
    "regmean": Method(
        "layer by layer nearest to the teachers' outputs on their own inputs",
        "2212.09849",
        data="images",
        params={"diagonal": 0.1},
    ),
    "adamerging": Method(
        "what they have learned, weighted tensor by tensor so that answers are sure",
        "2310.02575",
        base="may",
        data="images",
        params={"start": 0.3, "steps": 100, "lr": 0.01},
    ),
    "aligned-soup": Method("independent teachers: the mean in one frame, as it is", "2209.04836", align=True),
    "repair": Method(
        "the same, its units given back the spread that averaging takes (soup does so too)", "2211.08403", align=True
    ),
    "least-squares": Method("the soup, layers fitted to the teachers' on images", "2407.02447", data="images"),
}

# Those that see the net as a whole.
WHOLE = ("weightformer", "soup", *(name for name, method in METHODS.items() if method.data or method.align))
TENSORWISE = frozenset(METHODS) - frozenset(WHOLE)  # those of `merges`


def widened(tensor: Tensor) -> torch.dtype:
    """Return what a tensor of floating-point numbers is computed in: float32, float64 where it is that itself."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def weighted_sum(tensors: Iterable[Tensor], weights: Iterable[float | Tensor]) -> Tensor:
    """Return sum_t weights[t] * tensors[t] as float32 (float64 where an input is), with one tensor in memory at a time.

    A weight is a number or a tensor that broadcasts against the teachers' tensor, one weight a row for instance.
    """
    import torch

    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        term = tensor.to(widened(tensor)) * weight
        total = term if total is None else total.to(torch.promote_types(total.dtype, term.dtype)).add_(term)
    if total is None:
        raise ValueError("weighted_sum of no tensors")
    return total


def soup_tensor(tensors: Iterable[Tensor]) -> Tensor:
    """Return the uniform average of T versions of one tensor (Wortsman et al. 2022, 2203.05482, "uniform soup").

    Floating point: the mean in float32 (float64 where an input is), whatever the dtypes: to be rounded once, by who
    writes it. Integer and bool tensors are counters and masks, no quantities to average: the largest of them, whatever
    the order of the teachers.
    """
    import torch

    total: Tensor | None = None
    count = 0
    for tensor in tensors:
        count += 1
        if total is None:
            total = tensor.to(widened(tensor) if tensor.is_floating_point() else tensor.dtype, copy=True)
        elif total.is_floating_point():
            wide = torch.promote_types(total.dtype, widened(tensor))
            total = total.to(wide).add_(tensor.to(wide) if tensor.itemsize == 1 else tensor)  # float8 adds to nothing
        else:
            total = torch.maximum(total, tensor)
    if total is None:
        raise ValueError("soup of no tensors")
    return total.div_(count) if total.is_floating_point() else total


def soup_pieces(teachers: Sequence[Mapping[str, Tensor]], name: str) -> Iterator[Tensor]:
    """Yield the soup of one tensor of T teachers in pieces of rows; one piece of one teacher is in memory at a time."""
    first, *others = (in_pieces(teacher, name) for teacher in teachers)
    for piece in first:
        yield soup_tensor(chain((piece,), (next(other) for other in others)))


def soup(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the uniform soup of T state dicts in memory (name -> tensor)."""
    return {name: soup_tensor(state[name] for state in states) for name in states[0]}
