"""Independent nets in one frame: the permutations that bring one net's units to those of another.

Weight matching after Git Re-Basin (Ainsworth et al. 2022, arXiv 2209.04836, section 3.2), for whatever spaces the graph
has: one space at a time, in a random order, is assigned anew so that the inner product of the two nets' weights is the
largest, until none changes. A space with others within it (the heads of an attention, with the channels of each) is
assigned together with them: every pair of heads at its best.

n entries of a space, H entries of a space with others within, T nets.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wfcli.core.spaces import Space, index_of, places
from wfcli.core.symmetry import Symmetry, compose

State = Mapping[str, Tensor]
Permutations = dict[Space, Tensor]
ROUNDS = 50  # of all spaces; they stop changing after ten or so
LEAST_GAIN = 1e-6  # of what is reached: a smaller one is rounding


def match_weights(symmetry: Symmetry, state: State, target: State, seed: int = 0) -> tuple[Permutations, float]:
    """Return the permutations of `state` that bring it nearest to `target`, and the inner product they reach."""
    search = Search(symmetry, state, target)
    search.begin()
    search.go_on(seed)
    return search.found, search.similarity()


def match_all(symmetry: Symmetry, states: Sequence[State], seed: int = 0) -> list[Permutations]:
    """Return permutations of T nets that bring all of them into one frame: that of the net nearest to the others.

    All are matched to the first, which tells the net that is nearest to the others, and then to that one; after that
    each to the mean of the others, until none moves (MergeMany, algorithm 3 of the paper). There are no chains: from
    one net to another it is the same permutation straight and by way of a third.
    """
    names = [name for name in symmetry.axes if states[0][name].is_floating_point()]
    middle = 0
    for _ in range(2):
        searches = [Search(symmetry, state, states[middle]) for state in states]
        for number, search in enumerate(searches):
            if number != middle:
                search.begin()
                search.go_on(seed)
        flat = [torch.cat([search.moved[name].flatten().float() for name in names]) for search in searches]
        products = torch.tensor([[float(a @ b) for b in flat] for a in flat])
        before, middle = middle, int((products.sum(1) - products.diagonal()).argmax())
        if middle == before:
            break
    for _ in range(ROUNDS):
        moved = False
        for search in searches:
            others = [other.moved for other in searches if other is not search]
            search.aim({name: torch.stack([other[name].float() for other in others]).mean(0) for name in names})
            moved |= search.go_on(seed)
        if not moved:
            break
    return [search.found for search in searches]


class Search:
    """One net on its way to another: the permutations found so far, and the weights under them."""

    def __init__(self, symmetry: Symmetry, state: State, target: State) -> None:
        self.symmetry, self.target = symmetry, target
        self.moved = dict(state)
        self.found = dict(symmetry.identity())
        self.spots = occurrences(symmetry, state)
        self.inner: dict[Space, list[Space]] = {}
        for space in self.spots:
            if space.within is not None:
                self.inner.setdefault(space.within.find(), []).append(space)
        self.outer = [space for space in self.spots if space.within is None]
        self.stale = set(self.outer)  # those to look at: one of their tensors has changed since

    def aim(self, target: State) -> None:
        """Go for another net from here on."""
        self.target, self.stale = target, set(self.outer)

    def go_on(self, seed: int) -> bool:
        """Assign spaces in random orders until no other order is better; tell whether any was."""
        draw = torch.Generator().manual_seed(seed)
        better = False
        for _ in range(ROUNDS):
            for number in torch.randperm(len(self.outer), generator=draw).tolist():
                if self.outer[number] in self.stale:
                    better |= self.improve(self.outer[number])
            if not self.stale:
                break
        return better

    def begin(self) -> None:
        """Assign all spaces once, each by those tensors alone whose other axes are fixed or assigned already.

        Among axes that nobody has assigned yet any frame looks as good as another: whatever is assigned to them first
        would hold them where they are.
        """
        left, settled = set(self.outer), set[Space]()
        while left:
            weight = {
                space: sum(self.target[n].numel() for n in self.anchored(space, settled))
                for space in self.outer
                if space in left
            }
            best = max(weight, key=lambda space: weight[space])
            anchored = self.anchored(best, settled)
            self.improve(best, anchored if anchored else None)
            left.remove(best)
            settled |= {best, *self.inner.get(best, [])}

    def anchored(self, space: Space, settled: Container[Space]) -> set[str]:
        """Return the tensors with a space whose other free axes are all settled."""
        own = {space, *self.inner.get(space, [])}
        found = set()
        for name in {name for part in own for name, _, _ in self.spots[part]}:
            leaves = {leaf for axis in self.symmetry.axes[name] for leaf in axis.leaves() if not leaf.fixed}
            if all(leaf in settled for leaf in leaves - own):
                found.add(name)
        return found

    def improve(self, space: Space, names: Container[str] | None = None) -> bool:
        """Assign a space anew, with those within it; tell whether that is better than before.

        With `names`, by these tensors alone.
        """
        self.stale.discard(space)
        inner = self.inner.get(space, [])
        within = {spot[:2] for part in inner for spot in self.spots[part]}
        gain = torch.zeros(space.size, space.size)
        for name, axis, where in self.spots[space]:
            if (name, axis) not in within and (names is None or name in names):
                gain += rows(self.target[name], axis, where[0]) @ rows(self.moved[name], axis, where[0]).T
        now = gain.diagonal().sum()
        orders = {}
        for part in inner:
            pairs = self.between(part, names)  # [H, H, n, n]
            now = now + pairs.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1).sum()
            orders[part] = torch.stack([torch.stack([assign(pair) for pair in row]) for row in pairs])  # [H, H, n]
            gain += pairs.gather(3, orders[part][..., None]).sum((2, 3))
        order = assign(gain)
        if not gain[torch.arange(space.size), order].sum() > now + LEAST_GAIN * now.abs() + 1e-12:
            return False
        step: Permutations = {space: order}
        for part in inner:
            step[part] = torch.empty_like(self.found[part])
            step[part][order] = orders[part][torch.arange(space.size), order]  # by the number that an entry has now
        self.found = compose(self.found, step)
        for name, axis in {spot[:2] for part in (space, *inner) for spot in self.spots[part]}:
            index = index_of(self.symmetry.axes[name][axis], {**self.symmetry.identity(), **step})
            self.moved[name] = self.moved[name].index_select(axis, index)
            leaves = {leaf for other in self.symmetry.axes[name] for leaf in other.leaves()}
            self.stale |= {
                o for o in self.outer if o is not space and not leaves.isdisjoint({o, *self.inner.get(o, [])})
            }
        return True

    def between(self, part: Space, names: Container[str] | None) -> Tensor:
        """Return the inner products of a space's entries within each pair of entries of another: [H, H, n, n]."""
        (apart,) = self.found[part].shape[:1]
        found = torch.zeros(apart, apart, part.size, part.size)
        for name, axis, where in self.spots[part]:
            if names is not None and name not in names:
                continue
            theirs, ours = (
                torch.stack([rows(state[name], axis, own) for own in where]) for state in (self.target, self.moved)
            )
            found += torch.einsum("hnr,gmr->hgnm", theirs, ours)
        return found

    def similarity(self) -> float:
        """Return the inner product of the two nets' weights."""
        return float(sum((self.moved[name] * self.target[name]).sum() for name in self.symmetry.axes))


def match_activations(symmetry: Symmetry, ours: State, theirs: State, state: State, target: State) -> Permutations:
    """Return the permutations of a net that bring its activations nearest to those of another on the same images.

    `ours` and `theirs` are what `observe` gives: inner products are sums of correlations (Li et al. 2016, arXiv
    1511.07543). Spaces of which there are none are matched by the weights, `state` and `target`.
    """
    watched = Search(symmetry.of_activations(), ours, theirs)
    watched.begin()
    watched.go_on(0)
    found = {**symmetry.identity(), **watched.found}
    rest = Search(symmetry, symmetry.permuted(state, found), target)
    rest.outer = [space for space in rest.outer if space not in watched.spots]
    rest.stale = set(rest.outer)
    rest.go_on(0)
    return compose(found, rest.found)


def assign(gain: Tensor) -> Tensor:
    """Return the order of the columns [n] with the largest sum of gains [n, n] on the diagonal."""
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])


def occurrences(symmetry: Symmetry, state: State) -> dict[Space, list[tuple[str, int, Tensor]]]:
    """Return where each free space occurs: tensor, axis, positions int64 [H, n, m]; integer tensors are left out."""
    found: dict[Space, list[tuple[str, int, Tensor]]] = {}
    for name, axes in symmetry.axes.items():
        if name in state and state[name].is_floating_point():
            for axis, space in enumerate(axes):
                for leaf, where in places(space):
                    found.setdefault(leaf, []).append((name, axis, where))
    return found


def rows(tensor: Tensor, axis: int, where: Tensor) -> Tensor:
    """Return what belongs to each of some entries at positions [n, m]: [n, all of it], float32."""
    return tensor.movedim(axis, 0)[where].flatten(1).float()
