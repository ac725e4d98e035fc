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
    "interpolate", "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "upsample_bicubic2d",
    "upsample_bicubic2d_aa", "upsample_bilinear2d", "upsample_bilinear2d_aa", "upsample_nearest2d",
    "upsample_nearest_exact2d",
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
    """Keep images and channels; places are fixed."""
    tracer.fix_all(axes[2:])
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]
    result = [*axes[:2], *(Space(int(size), fixed=True) for size in first.shape[2:])]
    return result if isinstance(value, Tensor) else [result for _ in value]


def do_along(tracer: Tracer, node: torch.fx.Node, axes: Axes, *args: Any, **more: Any) -> Any:
    return axes


def do_create(tracer: Tracer, node: torch.fx.Node, *args: Any, **more: Any) -> Any:
    return tracer.fresh(node, fixed=True)


def do_linear(tracer: Tracer, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    unify(x[-1], weight[-1])
    if bias is not None:
        unify(bias[0], weight[0])
    return [*x[:-1], *weight[:-1]]


def do_conv2d(
    tracer: Tracer, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None, *rest: Any, groups: int = 1
) -> Axes:
    groups = rest[3] if len(rest) > 3 else groups
    tracer.fix_all([x[2:], weight[2:]])
    if groups == 1:
        unify(x[1], weight[1])
    else:
        group = Space(groups)
        unify(x[1], product([group, weight[1]]))
        unify(weight[0], product([group, Space(weight[0].size // groups)]))
    if bias is not None:
        unify(bias[0], weight[0])
    sizes = node.meta["val"].shape[2:]
    return [x[0], weight[0], *(Space(int(size), fixed=True) for size in sizes)]


def do_batch_norm(tracer: Tracer, node: torch.fx.Node, x: Axes, *vectors: Any, **more: Any) -> Axes:
    for vector in (*vectors[:4], *more.values()):
        if isinstance(vector, list):
            unify(x[1], vector[0])
    return x


def do_layer_norm(
    tracer: Tracer, node: torch.fx.Node, x: Axes, shape: Sequence[int], weight: Any = None, bias: Any = None, *rest: Any
) -> Axes:
    for vector in (weight, bias):
        for mine, theirs in zip(x[-len(shape) :], vector or [], strict=False):
            unify(mine, theirs)
    return x


def do_group_norm(
    tracer: Tracer, node: torch.fx.Node, x: Axes, groups: int, weight: Any = None, bias: Any = None, *rest: Any
) -> Axes:
    for vector in (weight, bias):
        if isinstance(vector, list):
            unify(x[1], vector[0])
    if 1 < groups < x[1].size:
        unify(x[1], product([Space(groups), Space(x[1].size // groups)]))
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
    result: Axes = [*tracer.fresh(node)[:-2], q[-2], v[-1]]
    for axes in (q, k, v):
        for mine, theirs in zip(result[:-2], axes[:-2], strict=True):
            if mine.size == theirs.size:
                unify(mine, theirs)
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
