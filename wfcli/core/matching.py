"""Independent nets in one frame: the permutations that bring one net's units to those of another.

Weight matching after Git Re-Basin (Ainsworth et al. 2022, arXiv 2209.04836, section 3.2), for whatever spaces the graph
has: one space at a time, in a random order, is assigned anew so that the inner product of the two nets' weights is the
largest, until none changes.

n entries of a space, T nets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wfcli.core.spaces import Space, index_of, places
from wfcli.core.symmetry import Symmetry

State = Mapping[str, Tensor]
Permutations = dict[Space, Tensor]
ROUNDS = 50  # of all spaces; they stop changing after ten or so


def match_weights(symmetry: Symmetry, state: State, target: State, seed: int = 0) -> tuple[Permutations, float]:
    """Return the permutations of `state` that bring it nearest to `target`, and the inner product they reach."""
    spots = occurrences(symmetry, state)
    found: Permutations = {space: torch.arange(space.size) for space in spots}
    draw = torch.Generator().manual_seed(seed)
    moved = dict(state)
    spaces = list(spots)
    for _ in range(ROUNDS):
        changed = False
        for number in torch.randperm(len(spaces), generator=draw).tolist():
            space = spaces[number]
            gain = sum(
                rows(target[name], axis, where) @ rows(moved[name], axis, where).T for name, axis, where in spots[space]
            )
            assert isinstance(gain, Tensor)
            order = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            now = gain.diagonal().sum()
            if gain[torch.arange(space.size), order].sum() > now + 1e-6 * now.abs() + 1e-12:
                changed = True
                found[space] = found[space][order]
                for name, axis in {(name, axis) for name, axis, _ in spots[space]}:
                    moved[name] = moved[name].index_select(axis, index_of(symmetry.axes[name][axis], {space: order}))
        if not changed:
            break
    return found, float(sum((moved[name] * target[name]).sum() for name in symmetry.axes))


def occurrences(symmetry: Symmetry, state: State) -> dict[Space, list[tuple[str, int, Tensor]]]:
    """Return where each free space occurs: tensor, axis, positions int64 [n, m]; integer tensors are left out."""
    found: dict[Space, list[tuple[str, int, Tensor]]] = {}
    for name, axes in symmetry.axes.items():
        if name in state and state[name].is_floating_point():
            for axis, space in enumerate(axes):
                for leaf, where in places(space):
                    found.setdefault(leaf, []).append((name, axis, where))
    return found


def rows(tensor: Tensor, axis: int, where: Tensor) -> Tensor:
    """Return what belongs to each entry of a space, [n, all of it], float32."""
    return tensor.movedim(axis, 0)[where].flatten(1).float()
