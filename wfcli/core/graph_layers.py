"""Rules of the graph: layers, and what is done to every entry alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfcli.core.graph import Axes, Rule, Tracer, operation
from wfcli.core.spaces import Space, product, unify

# One output, of the shape to which all tensors among the arguments are broadcast.
POINTWISE = frozenset([
    "abs", "add", "addcdiv", "addcmul", "alias", "bernoulli", "bitwise_and", "bitwise_not", "bitwise_or",
    "ceil", "clamp", "clamp_min", "clone", "contiguous", "copy", "cos", "detach", "div", "dropout", "elu", "eq",
    "erf", "exp", "feature_dropout", "floor_divide", "full_like", "ge", "gelu", "gt", "hardsigmoid",
    "hardswish", "hardtanh", "le", "leaky_relu", "lift_fresh_copy", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mish", "mul", "native_dropout",
    "ne", "neg", "ones_like", "pow", "reciprocal", "relu", "relu6", "rsqrt", "rsub", "selu", "sigmoid", "sign",
    "silu", "sin", "softplus", "sqrt", "square", "sub", "tanh", "to", "type_as", "where", "zeros_like",
])  # fmt: skip
# Axes stay or go; an axis that is gone was treated alike in all its entries.
REDUCTIONS = frozenset([
    "amax", "amin", "linalg_vector_norm", "logsumexp", "mean", "norm", "std", "std_mean", "sum", "var",
    "var_mean",
])  # fmt: skip
SPATIAL = frozenset([
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d",
    "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "upsample_bicubic2d", "upsample_bicubic2d_aa",
    "upsample_bilinear2d", "upsample_bilinear2d_aa", "upsample_nearest2d", "upsample_nearest_exact2d",
])  # fmt: skip
ALONG = frozenset([
    "log_softmax", "normalize", "softmax",
])  # fmt: skip  # alike in all entries of an axis
CREATIONS = frozenset([
    "arange", "empty", "full", "linspace", "new_full", "new_ones", "new_zeros", "ones", "scalar_tensor",
    "tensor", "zeros",
])  # fmt: skip


def do_pointwise(tracer: Tracer, node: torch.fx.Node, *args: Any, **more: Any) -> Any:
    """Make axes one that are broadcast to one."""
    found = [value for value in tracer.arguments([node.args, node.kwargs]) if isinstance(value, list)]
    if len(found) == 1:
        return found[0]
    result: Axes = tracer.fresh(node)
    for axes in found:
        for mine, theirs in zip(reversed(result), reversed(axes), strict=False):
            if theirs.size == mine.size:
                unify(mine, theirs)
    return result


def do_reduce(tracer: Tracer, node: torch.fx.Node, axes: Axes, *args: Any, **more: Any) -> Any:
    """Drop axes."""
    place = 1 if "norm" in operation(node) else 0
    dims = more.get("dim", args[place] if len(args) > place else None)
    if isinstance(dims, bool) or not isinstance(dims, int | list | None):
        return tracer.not_understood(node)
    gone = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims or range(len(axes)))}
    value = node.meta["val"]
    kept = value.ndim == len(axes) if isinstance(value, Tensor) else value[0].ndim == len(axes)
    left = [Space(1) if i in gone else axis for i, axis in enumerate(axes) if kept or i not in gone]
    return left if isinstance(value, Tensor) else [left for _ in value]


def do_spatial(tracer: Tracer, node: torch.fx.Node, axes: Axes, *args: Any, **more: Any) -> Any:
    """Keep images, where there is more than one, and channels; places are fixed."""
    count = 1 if "1d" in operation(node) else 2
    tracer.fix_all(axes[-count:])
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]
    result = [*axes[:-count], *(Space(int(size), fixed=True) for size in first.shape[-count:])]
    return result if isinstance(value, Tensor) else [result for _ in value]


def do_along(tracer: Tracer, node: torch.fx.Node, axes: Axes, dim: int, *rest: Any, **more: Any) -> Any:
    along = axes[dim]
    tracer.keep_apart([axis for axis in axes if axis is not along], [along])
    return axes


def do_create(tracer: Tracer, node: torch.fx.Node, *args: Any, **more: Any) -> Any:
    return tracer.fresh(node, fixed=True)


def do_linear(tracer: Tracer, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    unify(x[-1], weight[-1])
    if bias is not None:
        unify(bias[0], weight[0])
    tracer.keep_apart([*x, *weight[:-1]], weight)
    return [*x[:-1], *weight[:-1]]


def do_conv2d(
    tracer: Tracer, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None, *rest: Any, groups: int = 1
) -> Axes:
    groups = rest[3] if len(rest) > 3 else groups
    places = len(weight) - 2
    images, channels = x[: -places - 1], x[-places - 1]  # a single image may come without an axis of its own
    tracer.fix_all([x[-places:], weight[2:]])
    group, own = Space(groups), Space(weight[0].size // groups)
    unify(channels, product([group, weight[1]]))
    unify(weight[0], product([group, own]))
    if bias is not None:
        unify(bias[0], weight[0])
    tracer.keep_apart([*images, group, weight[1], own], [weight[1], own])
    sizes = node.meta["val"].shape[-places:]
    return [*images, weight[0], *(Space(int(size), fixed=True) for size in sizes)]


def do_batch_norm(tracer: Tracer, node: torch.fx.Node, x: Axes, *vectors: Any, **more: Any) -> Axes:
    for vector in (*vectors[:4], *more.values()):
        if isinstance(vector, list):
            unify(x[1], vector[0])
    if more.get("training", vectors[4] if len(vectors) > 4 else False):  # the images' own statistics
        tracer.keep_apart([x[1]], [x[0], *x[2:]])
    return x


def do_layer_norm(
    tracer: Tracer, node: torch.fx.Node, x: Axes, shape: Sequence[int], weight: Any = None, bias: Any = None, *rest: Any
) -> Axes:
    for vector in (weight, bias):
        for mine, theirs in zip(x[-len(shape) :], vector or [], strict=False):
            unify(mine, theirs)
    tracer.keep_apart(x[: -len(shape)], x[-len(shape) :])
    return x


def do_group_norm(
    tracer: Tracer, node: torch.fx.Node, x: Axes, groups: int, weight: Any = None, bias: Any = None, *rest: Any
) -> Axes:
    for vector in (weight, bias):
        if isinstance(vector, list):
            unify(x[1], vector[0])
    group, own = Space(groups), Space(x[1].size // groups)
    unify(x[1], product([group, own]))
    tracer.keep_apart([x[0], group], [own, *x[2:]])
    return x


def do_matmul(tracer: Tracer, node: torch.fx.Node, a: Axes, b: Axes) -> Any:
    if len(a) < 2 or len(b) < 2:
        return tracer.not_understood(node)
    unify(a[-1], b[-2])
    front = tracer.fresh(node)[:-2]
    for axes in (a[:-2], b[:-2]):
        for mine, theirs in zip(reversed(front), reversed(axes), strict=False):
            if mine.size == theirs.size:
                unify(mine, theirs)
    mixed = [a[-2], a[-1], b[-1]]
    tracer.keep_apart([*front, *mixed], mixed)
    return [*front, a[-2], b[-1]]


def do_baddbmm(tracer: Tracer, node: torch.fx.Node, add: Axes, a: Axes, b: Axes, **more: Any) -> Any:
    result = do_matmul(tracer, node, a, b)
    for mine, theirs in zip(reversed(result), reversed(add), strict=False):
        if mine.size == theirs.size:
            unify(mine, theirs)
    return result


def do_scaled_dot_product_attention(
    tracer: Tracer, node: torch.fx.Node, q: Axes, k: Axes, v: Axes, mask: Any = None, *rest: Any, **more: Any
) -> Any:
    mask = more.get("attn_mask", mask)
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    if more.get("is_causal", rest[1] if len(rest) > 1 else False):  # tokens have an order
        tracer.fix_all([q[-2], k[-2]])
    result: Axes = [*tracer.fresh(node)[:-2], q[-2], v[-1]]
    for axes in (q, k, v):
        for mine, theirs in zip(reversed(result[:-2]), reversed(axes[:-2]), strict=False):
            if mine.size == theirs.size:
                unify(mine, theirs)
            elif theirs.size > 1:  # heads of queries that share one of keys and values
                tracer.fix_all([mine, theirs])
    mixed = [q[-2], q[-1], k[-2], v[-1]]
    tracer.keep_apart([*result[:-2], *mixed], mixed)
    if isinstance(mask, list):
        for mine, theirs in zip(reversed([*result[:-1], k[-2]]), reversed(mask), strict=False):
            if mine.size == theirs.size:
                unify(mine, theirs)
    return result


def do_einsum(tracer: Tracer, node: torch.fx.Node, equation: str, values: Sequence[Axes], **more: Any) -> Any:
    left, _, right = equation.replace(" ", "").partition("->")
    if "." in equation or not right:
        return tracer.not_understood(node)
    known: dict[str, Space] = {}
    for letters, axes in zip(left.split(","), values, strict=True):
        for letter, axis in zip(letters, axes, strict=True):
            if known.setdefault(letter, axis).size != axis.size:
                return tracer.not_understood(node)
            unify(known[letter], axis)
    for letter, axis in known.items():
        beside = [term for term in (*left.split(","), right) if letter in term]
        lone = [other for other in known if 0 < sum(other in term for term in beside) < len(beside)]
        tracer.keep_apart([axis], [known[other] for other in lone])
    return [known[letter] for letter in right]


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, do_pointwise),
    **dict.fromkeys(REDUCTIONS, do_reduce),
    **dict.fromkeys(SPATIAL, do_spatial),
    **dict.fromkeys(ALONG, do_along),
    **dict.fromkeys(CREATIONS, do_create),
    "baddbmm": do_baddbmm,
    "batch_norm": do_batch_norm,
    "bmm": do_matmul,
    "conv1d": do_conv2d,
    "conv2d": do_conv2d,
    "conv3d": do_conv2d,
    "einsum": do_einsum,
    "group_norm": do_group_norm,
    "layer_norm": do_layer_norm,
    "linear": do_linear,
    "matmul": do_matmul,
    "mm": do_matmul,
    "rms_norm": do_layer_norm,
    "scaled_dot_product_attention": do_scaled_dot_product_attention,
}
