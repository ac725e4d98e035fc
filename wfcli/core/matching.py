"""Independent nets in one frame: the permutations that bring one net's units to those of another.

Weight matching after Git Re-Basin (Ainsworth et al. 2022, arXiv 2209.04836, section 3.2), for whatever spaces the graph
has: one space at a time, in a random order, is assigned anew so that the inner product of the two nets' weights is the
largest, until none changes. A space with others within it (the heads of an attention, with the channels of each) is
assigned together with them: every pair of heads at its best.

n entries of a space, H entries of a space with others within, T nets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wfcli.core.plan import LayerPlan
from wfcli.core.spaces import Space, index_of, places
from wfcli.core.symmetry import Symmetry, compose, inverse

State = Mapping[str, Tensor]
Permutations = dict[Space, Tensor]
EPS = 1e-5  # of the batch norms
ROUNDS = 50  # of all spaces; they stop changing after ten or so
LEAST_GAIN = 1e-4  # of what a space has reached: smaller ones take long, and change nothing that counts
LEAST_SWEEP = 1e-3  # of what all nets have reached together: the same
SEEN = "seen by "  # before the name of an activation, among weights
SEEN_SHARE = 2.0  # of activations beside weights: both have about length 1 for every unit
NEAR = 0.5  # cosine of two nets that share a base, as they are; independent ones have one near 0


def match_weights(
    symmetry: Symmetry, state: State, target: State, seed: int = 0, tries: int = 1
) -> tuple[Permutations, float]:
    """Return the permutations of `state` that bring it nearest to `target`, and the inner product they reach.

    The order of the spaces decides where the search ends: of `tries` random ones the best is kept.
    """
    start = Search(symmetry, state, target)
    del state  # as it moves, what it was goes
    if start.is_near():  # fine-tunes of one base: whatever else a search would find first is farther
        tries = 1
    else:
        start.begin()
    found: list[tuple[Permutations, float]] = []
    for number in range(tries):
        search = start.copy() if number + 1 < tries else start
        search.go_on(seed + number)
        found.append((search.found, search.similarity()))
    return max(found, key=lambda one: one[1])


def match_all(
    symmetry: Symmetry,
    nets: Sequence[Callable[[], State]],
    seed: int = 0,
    tries: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Permutations]:
    """Return permutations of T nets that bring all of them into one frame.

    It is that of the net nearest to the others; where some share a base, theirs.

    All are matched to the first, which tells the net that is nearest to the others; from there they go on to that one,
    and then each to the mean of the others, until none moves (MergeMany, algorithm 3 of the paper). There are no
    chains: from one net to another it is the same permutation straight and by way of a third.

    `nets` give the weights to match by, anew each time: beside one of them the sum of the others is in memory.
    `progress` is told how many searches are through, and of how many at least.
    """
    found = [symmetry.identity() for _ in nets]
    steps = 2 * (len(nets) - 1)
    target = nets[0]()
    for number in range(1, len(nets)):
        found[number] = match_weights(symmetry, nets[number](), target, seed, tries)[0]
        progress(number, steps)
    del target
    middle = _nearest(symmetry, nets, found)
    if middle:
        target = _placed(symmetry, nets[middle], found[middle])
        for number in (number for number in range(len(nets)) if number != middle):
            search = Search(symmetry, _placed(symmetry, nets[number], found[number]), target)
            search.go_on(seed)
            found[number] = compose(found[number], search.found)
            del search
        del target
    progress(len(nets) - 1, steps)
    total: dict[str, Tensor] = {}
    for net, permutations in zip(nets, found, strict=True):
        _add(total, _placed(symmetry, net, permutations))
    for sweep in range(ROUNDS if len(nets) > 2 else 0):
        better, reached = 0.0, 0.0
        for number, net in enumerate(nets):
            own = _placed(symmetry, net, found[number])
            _add(total, own, -1)  # the sum of the others
            search = Search(symmetry, own, total)
            del own  # as it moves, what it was goes
            before = search.similarity()
            if search.go_on(seed):
                better += search.similarity() - before
                found[number] = compose(found[number], search.found)
            _add(total, search.moved)
            del search
            reached += before
            if not sweep:
                progress(len(nets) - 1 + max(number, 1), steps)
        if better <= LEAST_SWEEP * abs(reached):
            break
    progress(steps, steps)
    alike = [sum(_equal(one, other) for other in found) for one in found]
    stays = middle if max(alike) == 1 else alike.index(max(alike))  # with all nets of its base
    back = inverse(found[stays])
    return [compose(permutations, back) for permutations in found]


def _placed(symmetry: Symmetry, net: Callable[[], State], permutations: Permutations) -> dict[str, Tensor]:
    """Return a net's weights in another order; there is never a second set of them in memory."""
    weights = dict(net())
    for name in weights:
        weights[name] = symmetry.permuted({name: weights[name]}, permutations)[name]
    return weights


def _add(total: dict[str, Tensor], weights: State, sign: int = 1) -> None:
    for name, tensor in weights.items():
        if name in total:
            total[name].add_(tensor, alpha=sign)
        else:
            total[name] = tensor.clone()


def _equal(one: Permutations, other: Permutations) -> bool:
    return all(torch.equal(order, other[space]) for space, order in one.items())


def match_to(
    symmetry: Symmetry,
    nets: Sequence[Callable[[], State]],
    target: State,
    seed: int = 0,
    tries: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Permutations]:
    """Return permutations of T nets that bring each of them into the frame of `target`."""
    found = []
    for number, net in enumerate(nets):
        found.append(match_weights(symmetry, net(), target, seed, tries)[0])
        progress(number + 1, len(nets))
    return found


def _nearest(symmetry: Symmetry, nets: Sequence[Callable[[], State]], found: Sequence[Permutations]) -> int:
    """Return the number of the net with the largest inner product to the sum of the others, all in one frame."""
    products = torch.zeros(len(nets), len(nets))
    for i in range(len(nets)):
        one = _placed(symmetry, nets[i], found[i])
        for j in range(i):
            other = _placed(symmetry, nets[j], found[j])
            products[i, j] = products[j, i] = sum(float((one[name] * other[name]).sum()) for name in one)
    return int(products.sum(1).argmax())


def comparable(symmetry: Symmetry, plan: LayerPlan, state: State) -> dict[str, Tensor]:
    """Return the weights to match a net by, float32: batch norms folded in, and no scale that a unit leaves open.

    A unit whose incoming weights are all doubled and whose outgoing ones are halved computes the same behind a ReLU,
    and a norm hides what comes before it. Here the incoming weights of every unit have length 1, and the outgoing ones
    carry what was taken from them.
    """
    weights = {name: tensor.float() for name, tensor in state.items() if tensor.is_floating_point()}
    for spec in plan.specs:
        if spec.weight is None or spec.running_mean is None or spec.running_var is None:
            continue
        mean, variance = weights.pop(spec.running_mean), weights.pop(spec.running_var)
        factor = (variance + EPS).rsqrt()
        if spec.norm_weight is not None:
            factor = factor * weights.pop(spec.norm_weight)
        weights[spec.weight] = weights[spec.weight] * _along(factor, weights[spec.weight], 0)
        shift = -mean * factor
        for name in (spec.bias, spec.norm_bias):
            if name is not None and name in weights:
                shift = shift + (weights.pop(name) * (factor if name == spec.bias else 1))
        kept = spec.norm_bias or spec.bias
        if kept is not None:
            weights[kept] = shift
    for space in symmetry.spaces():  # in the order of the tensors: what comes out of one layer goes into the next
        _take_scale(symmetry, weights, space)
    return weights


def _take_scale(symmetry: Symmetry, weights: dict[str, Tensor], space: Space) -> None:
    """Give what goes into every unit of a space length 1, and what comes out of it that length."""
    spots = [
        (name, axis)
        for name, axes in symmetry.axes.items()
        if name in weights and not (weights[name].dim() > 2 and weights[name].shape[1] == 1)  # depthwise: in and out
        for axis, root in enumerate(axes[:2])
        if root.find() is space
    ]
    into = [name for name, axis in spots if axis == 0 and weights[name].dim() > 1]
    if not into or space.within is not None:
        return
    length = torch.stack([weights[name].flatten(1).square().sum(1) for name in into]).sum(0).sqrt()
    length = length.clamp_min(1e-6 * float(length.max()) + 1e-12)
    for name, axis in spots:
        scale = _along(length, weights[name], axis)
        weights[name] = weights[name] * scale if axis else weights[name] / scale


def _along(vector: Tensor, tensor: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if number == axis else 1 for number in range(tensor.dim())])


class Search:
    """One net on its way to another: the permutations found so far, and the weights under them."""

    def __init__(self, symmetry: Symmetry, state: State, target: State) -> None:
        self.symmetry, self.target = symmetry, target
        self.moved = dict(state)
        self.identity = symmetry.identity()
        self.found = dict(self.identity)
        self.spots = occurrences(symmetry, state)
        self.inner: dict[Space, list[Space]] = {}
        for space in self.spots:
            if space.within is not None:
                self.inner.setdefault(space.within.find(), []).append(space)
        self.outer = [space for space in self.spots if space.within is None]
        self.stale = set(self.outer)  # those to look at: one of their tensors has changed since

    def copy(self) -> Search:
        """Return a search that goes on from here by itself; weights are shared until they are moved."""
        other = copy.copy(self)
        other.moved, other.found, other.stale = dict(self.moved), dict(self.found), set(self.stale)
        return other

    def is_near(self) -> bool:
        """Tell whether the nets are near one another as they are, by their matrices: vectors are always alike."""
        own, both, theirs = 0.0, 0.0, 0.0
        for name, one in self.moved.items():
            if name in self.symmetry.axes and name in self.target and one.dim() > 1:
                other = self.target[name]
                own, theirs = own + float(one.square().sum()), theirs + float(other.square().sum())
                both += float((one * other).sum())
        return bool(both > NEAR * math.sqrt(own * theirs) > 0)

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
            index = index_of(self.symmetry.axes[name][axis], {**self.identity, **step})
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
        return float(
            sum((self.moved[name] * self.target[name]).sum() for name in self.symmetry.axes if name in self.target)
        )


def match_activations(
    symmetry: Symmetry,
    nets: Sequence[Callable[[], State]],
    seen: Sequence[State],
    seed: int = 0,
    tries: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Permutations]:
    """Return permutations of T nets that bring their activations on the same images, and their weights, into one frame.

    `seen` give what `observe` does of each net: their inner products are sums of correlations (Li et al. 2016, arXiv
    1511.07543). Those of the weights are added, so that each polishes what the other has found, and spaces that are
    never watched are matched too.
    """
    watched = symmetry.of_activations()
    both = Symmetry({**symmetry.axes, **{SEEN + name: axes for name, axes in watched.axes.items()}})

    def joint(net: Callable[[], State], look: State) -> State:
        return {**net(), **{SEEN + name: tensor * SEEN_SHARE for name, tensor in look.items()}}

    joined = [partial(joint, net, look) for net, look in zip(nets, seen, strict=True)]
    return match_all(both, joined, seed, tries, progress)


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
    if where.shape == (tensor.shape[axis], 1) and bool((where[1:] > where[:-1]).all()):  # all of them, as they stand
        return tensor.movedim(axis, 0).reshape(len(where), -1).float()
    return tensor.movedim(axis, 0)[where].flatten(1).float()
