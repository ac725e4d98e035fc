"""Rules of the graph: what moves, splits and joins axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch

from wfcli.core.graph import Axes, Rule, Stack, Tracer, operation
from wfcli.core.spaces import Space, cut, factors, fix, is_fixed, product, split_product, total, unify


def do_view(tracer: Tracer, node: torch.fx.Node, x: Axes, *shape: Any) -> Any:
    """Split and merge axes; where what a single axis is split into is taken apart next, a stack."""
    sizes = [int(size) for size in node.meta["val"].shape]
    result: Axes = []
    stack: tuple[int, list[Axes]] | None = None
    for before, after in groups_of([axis.size for axis in x], sizes):
        mine, wanted = [x[i] for i in before], [sizes[i] for i in after]
        found = factors(product(mine)) if mine else []
        apart = next((i for i, d in enumerate(after) if sizes[d] > 1 and is_taken_apart(node, d)), None)
        if apart == 0 and stack is None and len(found) == 1 and not is_fixed(found[0]):
            pieces = cut(found[0], [found[0].size // wanted[0]] * wanted[0])
            stack = len(result), [divide(piece, wanted[1:]) for piece in pieces]
            result += [Space(size) for size in wanted]  # overwritten below, slice by slice
        else:
            result += divide(product(mine) if mine else Space(1), wanted)
    if stack is None:
        return result
    place, slices = stack
    return Stack(place, [[*result[:place], *own, *result[place + 1 + len(own) :]] for own in slices])


def divide(space: Space, sizes: Sequence[int]) -> Axes:
    """Split a space in factors of these sizes."""
    result: Axes = []
    for number, size in enumerate(sizes):
        if size == 1:
            result.append(Space(1))
            continue
        if number == len(sizes) - 1:
            result.append(space)
            break
        halves = split_product(space, size)
        if halves is None:
            fix(space)
            return [*result, *(Space(s, fixed=True) for s in sizes[number:])]
        result.append(halves[0])
        space = halves[1]
    return result


def do_permute(tracer: Tracer, node: torch.fx.Node, x: Any, dims: Sequence[int]) -> Any:
    if isinstance(x, Stack):
        order = [d % (len(x.slices[0]) + 1) for d in dims]
        left = [d - (d > x.axis) for d in order if d != x.axis]
        return Stack(order.index(x.axis), [[own[d] for d in left] for own in x.slices])
    return [x[d] for d in dims]


def do_transpose(tracer: Tracer, node: torch.fx.Node, x: Any, a: int, b: int) -> Any:
    rank = len(node.meta["val"].shape)
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return do_permute(tracer, node, x, order)


def do_t(tracer: Tracer, node: torch.fx.Node, x: Axes) -> Axes:
    return x[::-1]


def do_contiguous(tracer: Tracer, node: torch.fx.Node, x: Any, *rest: Any, **more: Any) -> Any:
    return x


def do_unbind(tracer: Tracer, node: torch.fx.Node, x: Any, dim: int = 0) -> Any:
    count = len(node.meta["val"])
    return [do_select(tracer, node, x, dim, number) for number in range(count)]


def do_select(tracer: Tracer, node: torch.fx.Node, x: Any, dim: int, number: int) -> Any:
    if isinstance(x, Stack):
        dim %= len(x.slices[0]) + 1
        if dim == x.axis:
            return x.slices[number]
        return tracer.not_understood(node)
    dim %= len(x)
    fix(x[dim])
    return [axis for i, axis in enumerate(x) if i != dim]


def do_getitem(tracer: Tracer, node: torch.fx.Node, x: Any, number: int) -> Any:
    return x[number]


def do_slice(
    tracer: Tracer, node: torch.fx.Node, x: Axes, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    dim %= len(x)
    size, left = x[dim].size, int(node.meta["val"].shape[dim])
    if left == size and step == 1:
        return x
    if step != 1:
        fix(x[dim])
        return [*x[:dim], Space(left, fixed=True), *x[dim + 1 :]]
    start = 0 if start is None else min(size, max(0, start + size if start < 0 else start))
    return [*x[:dim], cut(x[dim], [start, left, size - start - left])[1], *x[dim + 1 :]]


def do_narrow(tracer: Tracer, node: torch.fx.Node, x: Axes, dim: int, start: int, length: int) -> Any:
    return do_slice(tracer, node, x, dim, start, start + length)


def do_split(tracer: Tracer, node: torch.fx.Node, x: Axes, sizes: Any, dim: int = 0) -> Any:
    lengths = [int(part.shape[dim]) for part in node.meta["val"]]
    dim %= len(x)
    return [[*x[:dim], piece, *x[dim + 1 :]] for piece in cut(x[dim], lengths)]


def do_cat(tracer: Tracer, node: torch.fx.Node, values: Sequence[Axes], dim: int = 0) -> Any:
    values = [axes for axes in values if axes != []]
    dim %= len(values[0])
    for axes in values[1:]:
        for i, axis in enumerate(axes):
            if i != dim:
                unify(values[0][i], axis)
    return [*values[0][:dim], total([axes[dim] for axes in values]), *values[0][dim + 1 :]]


def do_stack(tracer: Tracer, node: torch.fx.Node, values: Sequence[Axes], dim: int = 0) -> Any:
    for axes in values[1:]:
        for a, b in zip(values[0], axes, strict=True):
            unify(a, b)
    dim %= len(values[0]) + 1
    return [*values[0][:dim], Space(len(values), fixed=True), *values[0][dim:]]


def do_expand(tracer: Tracer, node: torch.fx.Node, x: Axes, *rest: Any, **more: Any) -> Any:
    sizes = [int(size) for size in node.meta["val"].shape]
    old = [Space(1)] * (len(sizes) - len(x)) + x
    return [axis if axis.size == size else Space(size) for axis, size in zip(old, sizes, strict=True)]


def do_repeat(tracer: Tracer, node: torch.fx.Node, x: Axes, times: Sequence[int]) -> Any:
    old = [Space(1)] * (len(times) - len(x)) + x
    return [product([Space(count), axis]) for count, axis in zip(times, old, strict=True)]


def do_pad(tracer: Tracer, node: torch.fx.Node, x: Axes, widths: Sequence[int], *rest: Any, **more: Any) -> Any:
    result = list(x)
    for number in range(len(widths) // 2):
        before, after = widths[2 * number : 2 * number + 2]
        axis = x[-1 - number]
        if before < 0 or after < 0 or (rest and rest[0] != "constant"):
            fix(axis)
            result[-1 - number] = Space(axis.size + before + after, fixed=True)
        else:
            result[-1 - number] = total([Space(before, fixed=True), axis, Space(after, fixed=True)])
    return result


def do_roll(tracer: Tracer, node: torch.fx.Node, x: Axes, shifts: Any, dims: Any = ()) -> Any:
    for dim in [dims] if isinstance(dims, int) else dims or range(len(x)):
        fix(x[dim])
    return x


def do_flip(tracer: Tracer, node: torch.fx.Node, x: Axes, dims: Sequence[int]) -> Any:
    return do_roll(tracer, node, x, None, dims)


def do_cumsum(tracer: Tracer, node: torch.fx.Node, x: Axes, dim: int, **more: Any) -> Any:
    return do_roll(tracer, node, x, None, dim)


def do_index(tracer: Tracer, node: torch.fx.Node, x: Axes, indices: Sequence[Any]) -> Any:
    """Look entries up by number: the axes they are taken from stay as they are."""
    given = [i for i, index in enumerate(indices) if index is not None]
    tracer.fix_all([indices, [x[i] for i in given]])
    first, last = given[0], given[-1]
    rank = len(node.meta["val"].shape) - (len(x) - len(given))  # of what the numbers together look like
    place = first if last - first + 1 == len(given) else 0  # numbers that are apart come first
    left = [axis for i, axis in enumerate(x) if i not in given]
    found = [Space(int(size), fixed=True) for size in node.meta["val"].shape[place : place + rank]]
    return [*left[:place], *found, *left[place:]]


def do_index_select(tracer: Tracer, node: torch.fx.Node, x: Axes, dim: int, index: Axes) -> Any:
    return do_index(tracer, node, x, [*[None] * (dim % len(x)), index])


def do_im2col(tracer: Tracer, node: torch.fx.Node, x: Axes, kernel: Sequence[int], *rest: Any) -> Any:
    tracer.fix_all(x[2:])
    places = Space(int(node.meta["val"].shape[-1]), fixed=True)
    return [x[0], product([x[1], Space(prod(kernel), fixed=True)]), places]


def do_col2im(
    tracer: Tracer, node: torch.fx.Node, x: Axes, size: Sequence[int], kernel: Sequence[int], *rest: Any
) -> Any:
    channels, window = divide(x[1], [x[1].size // prod(kernel), prod(kernel)])
    tracer.fix_all([window, x[2]])
    return [x[0], channels, *(Space(int(side), fixed=True) for side in size)]


def do_embedding(tracer: Tracer, node: torch.fx.Node, weight: Axes, indices: Axes, *rest: Any) -> Any:
    return do_index(tracer, node, weight, [indices])


def do_pixel_shuffle(tracer: Tracer, node: torch.fx.Node, x: Axes, factor: int) -> Any:
    channels = divide(x[1], [x[1].size // factor**2, factor**2])
    fix(channels[1])
    tracer.fix_all(x[2:])
    return [x[0], channels[0], *(Space(axis.size * factor, fixed=True) for axis in x[2:])]


def do_wrap_with_autocast(tracer: Tracer, node: torch.fx.Node, *args: Any, **more: Any) -> Any:
    place = next(i for i, arg in enumerate(args) if isinstance(arg, torch.fx.GraphModule))
    return tracer.inside(args[place], args[place + 1 :])


def do_sym_size(tracer: Tracer, node: torch.fx.Node, *rest: Any) -> Any:
    return node.meta["val"]


def do_assert_tensor_metadata(tracer: Tracer, node: torch.fx.Node, *rest: Any, **more: Any) -> Any:
    return None


def groups_of(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Divide the axes of two shapes of as many entries into the smallest groups that match: ([i, ...], [j, ...])."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a == b and (left or right) and not (a == 1 and i < len(before) and j < len(after)):
                break
            if a <= b and i < len(before):
                a *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                b *= after[j]
                right.append(j)
                j += 1
            else:
                break
        while i == len(before) and j < len(after):  # ones at the end
            right.append(j)
            j += 1
        while j == len(after) and i < len(before):
            left.append(i)
            i += 1
        found.append((left, right))
    assert all(prod(before[i] for i in left) == prod(after[j] for j in right) for left, right in found)
    return found


def is_taken_apart(node: torch.fx.Node, dim: int) -> bool:
    """Tell whether all that is done next with an axis of a node's value is to take its entries one by one."""
    rank = len(node.meta["val"].shape)
    for user in node.users:
        name, args = operation(user), cast(tuple[Any, ...], user.args)
        if name in ("unbind", "select"):
            if (args[1] if len(args) > 1 else 0) % rank != dim:
                return False
            continue
        after = dim
        if name == "permute":
            after = [d % rank for d in args[1]].index(dim)
        elif name == "transpose":
            a, b = (d % rank for d in args[1:3])
            after = b if dim == a else a if dim == b else dim
        elif name not in ("contiguous", "clone"):
            return False
        if not is_taken_apart(user, after):
            return False
    return bool(node.users)


RULES: dict[str, Rule] = {
    "assert_tensor_metadata": do_assert_tensor_metadata,
    "broadcast_to": do_expand,
    "cat": do_cat,
    "chunk": do_split,
    "col2im": do_col2im,
    "concat": do_cat,
    "concatenate": do_cat,
    "constant_pad_nd": do_pad,
    "contiguous": do_contiguous,
    "cumsum": do_cumsum,
    "embedding": do_embedding,
    "expand": do_expand,
    "expand_as": do_expand,
    "flatten": do_view,
    "flip": do_flip,
    "getitem": do_getitem,
    "im2col": do_im2col,
    "index": do_index,
    "index_select": do_index_select,
    "narrow": do_narrow,
    "pad": do_pad,
    "permute": do_permute,
    "pixel_shuffle": do_pixel_shuffle,
    "repeat": do_repeat,
    "reshape": do_view,
    "reshape_as": do_view,
    "roll": do_roll,
    "select": do_select,
    "slice": do_slice,
    "split": do_split,
    "split_with_sizes": do_split,
    "squeeze": do_view,
    "stack": do_stack,
    "sym_size": do_sym_size,
    "t": do_t,
    "tensor_split": do_split,
    "transpose": do_transpose,
    "unbind": do_unbind,
    "unflatten": do_view,
    "unsafe_view": do_view,
    "unsqueeze": do_view,
    "view": do_view,
    "view_as": do_view,
    "wrap_with_autocast": do_wrap_with_autocast,
    "wrap_with_set_grad_enabled": do_wrap_with_autocast,
}
