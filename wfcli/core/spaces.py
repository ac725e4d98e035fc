"""Spaces: what the entries of a tensor's axis may be permuted by, and which axes have to be permuted alike.

An axis has a space. A space is a leaf (any permutation of its entries, or none where it is fixed), a product (the axis
enumerates pairs, the last factor fastest: heads x channels of a head) or a sum (the axis is several others end to end:
concatenated channels). What a net does with its tensors makes spaces one, splits leaves into products and sums, and
fixes what it understands no better; what is left free are the permutations that change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor


class Space:
    """A node of the forest. Compare spaces by `find`: those that were made one have one root."""

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed or size == 1  # of a leaf
        self.kind: Literal["leaf", "product", "sum"] = "leaf"
        self.parts: list[Space] = []
        self.parent: Space | None = None
        self.within: Space | None = None  # a leaf whose every entry has a permutation of this space's of its own

    def find(self) -> Space:
        """Return the root: the space that this one was made one with."""
        root = self
        while root.parent is not None:
            root = root.parent
        if self.parent is not None:
            self.parent = root  # the next time it is one step
        return root

    def leaves(self) -> Iterator[Space]:
        """Yield the leaves of the root, from left to right; one that occurs twice comes twice."""
        root = self.find()
        if root.kind == "leaf":
            yield root
        for part in root.parts:
            yield from part.leaves()

    def __repr__(self) -> str:
        root = self.find()
        if root.kind == "leaf":
            return f"{root.size}{'!' if root.fixed else f'#{id(root) % 9973}'}"
        return "(" + {"product": " x ", "sum": " + "}[root.kind].join(map(repr, root.parts)) + ")"


def product(parts: Sequence[Space]) -> Space:
    """Return the space of an axis that enumerates the entries of several, the last one fastest."""
    flat = [factor for part in parts for factor in factors(part)]
    if len(flat) == 1:
        return flat[0]
    node = Space(prod(part.size for part in flat), fixed=True)
    if any(not leaf.fixed for part in flat for leaf in part.leaves()):
        node.kind, node.parts = "product", flat
    return node


def total(parts: Sequence[Space]) -> Space:
    """Return the space of axes put end to end."""
    flat = [term for part in parts for term in terms(part)]
    if len(flat) == 1:
        return flat[0]
    if inner := _same_inside(flat):
        size = sum(part.size for part in flat)
        return product([Space(size // prod(factor.size for factor in inner), fixed=True), *inner])
    node = Space(sum(part.size for part in flat), fixed=True)
    if any(not leaf.fixed for part in flat for leaf in part.leaves()):
        node.kind, node.parts = "sum", flat
    return node


def _same_inside(parts: Sequence[Space]) -> list[Space]:
    """Return what is inside of all parts, where each is some copies of the same, none of which changes place."""
    inside = []
    for part in parts:
        found = factors(part)
        while found and is_fixed(found[0]):
            found.pop(0)
        inside.append(found)
    return inside[0] if all(found == inside[0] for found in inside) else []


def factors(space: Space) -> list[Space]:
    """Return what a space is a product of, without factors of one entry."""
    root = space.find()
    if root.kind != "product":
        return [root] if root.size > 1 else []
    return [factor for part in root.parts for factor in factors(part)]


def terms(space: Space) -> list[Space]:
    """Return what a space is a sum of, without empty ones."""
    root = space.find()
    if root.kind != "sum":
        return [root] if root.size else []
    return [term for part in root.parts for term in terms(part)]


def fix(space: Space) -> None:
    """Allow no permutation."""
    for leaf in space.leaves():
        leaf.fixed = True


def is_fixed(space: Space) -> bool:
    """Tell whether no permutation is left."""
    return all(leaf.fixed for leaf in space.leaves())


def unify(a: Space, b: Space) -> None:
    """Make two spaces one: from now on both are permuted alike."""
    a, b = a.find(), b.find()
    if a is b:
        return
    assert a.size == b.size, f"axes of {a.size} and {b.size} entries cannot be one"
    if is_fixed(a) or is_fixed(b):
        fix(a)
        fix(b)
        return
    if b.kind == "leaf":
        a, b = b, a
    if a.kind == "leaf":
        if any(leaf is a for leaf in b.leaves()):
            fix(b)
        else:
            a.parent = b
        return
    if a.kind == b.kind == "product":
        match_products(factors(a), factors(b))
    elif a.kind == b.kind == "sum":
        match_sums(terms(a), terms(b))
    else:
        fix(a)
        fix(b)


def match_products(left: list[Space], right: list[Space]) -> None:
    """Make the products of two lists one, splitting factors where the other list is finer."""
    left, right = left[::-1], right[::-1]
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size == b.size:
            unify(a, b)
        elif a.size % b.size == 0 and (halves := split_product(a, b.size)):
            unify(halves[0], b)
            left.append(halves[1])
        elif b.size % a.size == 0 and (halves := split_product(b, a.size)):
            unify(a, halves[0])
            right.append(halves[1])
        else:
            for space in (a, b, *left, *right):
                fix(space)
            return


def match_sums(left: list[Space], right: list[Space]) -> None:
    """Make the sums of two lists one, splitting terms where the other list is finer."""
    left, right = left[::-1], right[::-1]
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size > b.size:
            a, *rest = cut(a, [b.size, a.size - b.size])
            left += rest
        elif b.size > a.size:
            b, *rest = cut(b, [a.size, b.size - a.size])
            right += rest
        unify(a, b)


def split_product(space: Space, outer: int) -> tuple[Space, Space] | None:
    """Split a space in two factors, the first of `outer` entries; None where it cannot be, and then it is fixed."""
    root = space.find()
    found = factors(root)
    front: list[Space] = []
    while found and outer % found[0].size == 0 and outer > 1:
        outer //= found[0].size
        front.append(found.pop(0))
    if outer == 1:
        return product(front), product(found)
    if len(found) == 0 or found[0].size % outer or (found[0].kind == "sum" and not is_fixed(found[0])):
        fix(root)
        return None
    leaf = found.pop(0)
    a, b = Space(outer, leaf.fixed), Space(leaf.size // outer, leaf.fixed)
    if not is_fixed(leaf):
        leaf.kind, leaf.parts = "product", [a, b]
    return product([*front, a]), product([b, *found])


def cut(space: Space, sizes: Sequence[int]) -> list[Space]:
    """Cut an axis into pieces of these sizes, end to end."""
    root = space.find()
    if is_fixed(root):
        return [Space(size, fixed=True) for size in sizes]
    if root.kind == "leaf":
        root.kind, root.parts = "sum", [Space(size) for size in sizes if size]
        found = iter(root.parts)
        return [next(found) if size else Space(0, fixed=True) for size in sizes]
    if root.kind == "product":  # k copies of what is inside, k of which none may change place
        outer, inner = root.parts[0], product(root.parts[1:])
        if outer.find().kind == "leaf" and all(size % inner.size == 0 for size in sizes):
            fix(outer)
            return [product([Space(size // inner.size, fixed=True), inner]) for size in sizes]
        fix(root)
        return cut(root, sizes)
    return _cut_terms(terms(root), sizes)


def _cut_terms(found: list[Space], sizes: Sequence[int]) -> list[Space]:
    found = found[::-1]
    pieces = []
    for size in sizes:
        piece: list[Space] = []
        while size > 0:
            term = found.pop()
            if term.size > size:
                term, rest = cut(term, [size, term.size - size])
                found.append(rest)
            piece.append(term)
            size -= term.size
        pieces.append(total(piece) if piece else Space(0, fixed=True))
    return pieces


def index_of(space: Space, permutations: Mapping[Space, Tensor]) -> Tensor:
    """Return the order of an axis' entries, int64 [size], under permutations of some leaves: new entry i is old [i].

    A leaf `within` another of H entries has H of them, [H, n]: one for each *old* entry of the other.
    """
    root = space.find()
    if root.kind == "leaf":
        return permutations.get(root, torch.arange(root.size))
    if root.kind == "sum":
        indices = [index_of(part, permutations) for part in root.parts]
        starts = torch.tensor([0] + [len(index) for index in indices]).cumsum(0)
        return torch.cat([index + start for index, start in zip(indices, starts, strict=False)])
    order = torch.zeros(1, dtype=torch.int64)
    for part in factors(root):
        index = index_of(part, permutations)
        own = index[order % len(index)] if index.dim() == 2 else index[None]
        order = (order[:, None] * part.size + own).flatten()
    return order


def places(space: Space) -> Iterator[tuple[Space, Tensor]]:
    """Yield every free leaf of an axis with where its n entries stand in it, int64 [H, n, m]: m times each.

    H is 1, or the number of entries of the space that the leaf is `within`: those of each apart.
    """
    root = space.find()
    if root.kind == "leaf":
        if not root.fixed:
            yield root, torch.arange(root.size)[None, :, None]
    elif root.kind == "sum":
        before = 0
        for part in root.parts:
            for leaf, found in places(part):
                yield leaf, found + before
            before += part.size
    else:
        parts = factors(root)
        for number, part in enumerate(parts):
            inner = prod(other.size for other in parts[number + 1 :])
            outer = root.size // (inner * part.size)
            for leaf, found in places(part):
                apart = leaf.within.find().size if leaf is part and leaf.within is not None else 1
                starts = torch.arange(outer).reshape(-1, apart).T[:, None, None, :, None] * part.size  # [H, 1, 1, P, 1]
                spots = (starts + found[..., None, None]) * inner + torch.arange(inner)  # [H, n, m, P, I]
                yield leaf, spots.flatten(2)


def find_private(
    axes: Iterable[Sequence[Space]],
    values: Iterable[Sequence[Space]],
    apart: Iterable[tuple[Space, Sequence[Space]]],
) -> None:
    """Let leaves move within each entry of another, where nothing stands in the way: channels of a head, say.

    `axes` are those of each tensor, `values` those of all that is computed. A leaf d may have a permutation of its own
    in every entry of h where each tensor with d has it as h x d, and each value with d has one h, too. No operation may
    bring one entry of h together with another, as a product does in which not both factors have h as a batch: `apart`
    are the axes of which d is one, with those of which h must not be one.
    """
    before: dict[Space, set[Space | None]] = {}
    for tensor in axes:
        for leaf, previous in _leaves_and_previous(tensor):
            before.setdefault(leaf, set()).add(previous)
    private = {d: found.pop() for d, found in before.items() if len(found) == 1}
    for value in (*axes, *values):
        pairs = _leaves_and_previous(value)
        count = Counter(leaf for axis in value for leaf in axis.leaves())
        for d, previous in pairs:
            h = private.get(d)
            if previous is not h and h is not None and count[h] != 1:
                del private[d]
    for axis, mixed in apart:
        met = {leaf for other in mixed for leaf in other.leaves()}
        for d, previous in _leaves_and_previous([axis]):
            h = private.get(d)
            if previous is not h and h is not None and h in met:
                del private[d]
    for d, h in private.items():
        if h is not None and not h.fixed and not _is_free(private.get(h)):  # one within another, not three
            d.within = h


def _is_free(leaf: Space | None) -> bool:
    return leaf is not None and not leaf.fixed


def _leaves_and_previous(axes: Sequence[Space]) -> list[tuple[Space, Space | None]]:
    """Return every free leaf of some axes with the leaf it stands directly inside of."""
    found = []
    for part in (part for axis in axes for part in _products(axis)):
        for previous, factor in zip([None, *part], part, strict=False):
            if factor.kind == "leaf" and not factor.fixed:
                found.append((factor, previous if previous is not None and previous.kind == "leaf" else None))
    return found


def _products(space: Space) -> Iterator[list[Space]]:
    """Yield the factors of an axis, of every term of a sum apart; a leaf is one factor."""
    for term in terms(space):
        found = factors(term)
        yield found
        for factor in found:
            if factor.kind == "sum":
                yield from _products(factor)
