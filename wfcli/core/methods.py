"""The merge methods: small pure functions over the T versions of one tensor.

T teachers. A method reads the teachers one after the other and keeps a running sum, so memory does not grow with T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from wfcli.core.pieces import in_pieces

if TYPE_CHECKING:
    from torch import Tensor


METHODS = (
    "weightformer",  # a trained generator mixes the teachers per weight (Meta-Ensemble Parameter Learning, 2210.01973)
    "soup",  # uniform average of the weights (Model soups, 2203.05482)
    "least-squares",  # the soup, layers fitted to the teachers' on images (RegMean, 2212.09849; PLeaS, 2407.02447)
)


def weighted_sum(tensors: Iterable[Tensor], weights: Iterable[float | Tensor]) -> Tensor:
    """Return sum_t weights[t] * tensors[t] as float32 (float64 where an input is), with one tensor in memory at a time.

    A weight is a number or a tensor that broadcasts against the teachers' tensor, one weight a row for instance.
    """
    import torch

    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        term = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * weight
        total = term if total is None else total.add_(term)
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
            wide = torch.promote_types(tensor.dtype, torch.float32)
            total = tensor.to(wide if tensor.is_floating_point() else tensor.dtype, copy=True)
        elif total.is_floating_point():
            total = total.to(torch.promote_types(total.dtype, tensor.dtype)).add_(tensor)
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
