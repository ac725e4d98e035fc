"""Which axes of a net's tensors may be permuted without changing its function, found by following its graph.

torch.export gives the graph of ATen operations; every axis of every tensor in it has a space (`spaces`). Each operation
says which axes must be permuted alike, which fall apart, and which must stay as they are. An operation that is not
known here fixes all axes that reach it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from wfcli.core.spaces import Space, cut, factors, fix, index_of, is_fixed, product, split_product, total, unify

Axes = list[Space]

# One output, of the shape to which all tensors among the arguments are broadcast.
POINTWISE = frozenset([
    "abs", "add", "add_", "addcdiv", "addcmul", "alias", "bernoulli", "bitwise_and", "bitwise_not",
    "bitwise_or", "ceil", "clamp", "clamp_", "clamp_min", "clone", "contiguous", "copy_", "cos", "detach",
    "detach_", "div", "div_", "dropout", "dropout_", "elu", "elu_", "eq", "erf", "exp", "feature_dropout",
    "floor_divide", "full_like", "ge", "gelu", "gt", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_",
    "hardtanh", "hardtanh_", "le", "leaky_relu", "leaky_relu_", "lift_fresh_copy", "log", "log1p",
    "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mish", "mish_",
    "mul", "mul_", "native_dropout", "ne", "neg", "ones_like", "pow", "reciprocal", "relu", "relu6", "relu_",
    "rsqrt", "rsub", "selu", "sigmoid", "sigmoid_", "sign", "silu", "silu_", "sin", "softplus", "sqrt",
    "square", "sub", "sub_", "tanh", "tanh_", "to", "type_as", "where", "zeros_like",
])  # fmt: skip
# Axes stay or go; an axis that is gone was treated alike in all its entries.
REDUCTIONS = frozenset([
    "amax", "amin", "linalg_vector_norm", "logsumexp", "mean", "norm", "std", "std_mean", "sum", "var",
    "var_mean",
])  # fmt: skip
SPATIAL = frozenset([
    "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "interpolate", "max_pool1d", "max_pool2d",
    "max_pool2d_with_indices", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
    "upsample_nearest_exact2d",
])  # fmt: skip
ALONG = frozenset([
    "_log_softmax", "_softmax", "log_softmax", "normalize", "softmax",
])  # fmt: skip  # alike in all entries of an axis
CREATIONS = frozenset([
    "arange", "empty", "full", "linspace", "new_full", "new_ones", "new_zeros", "ones", "scalar_tensor",
    "tensor", "zeros",
])  # fmt: skip


@dataclass
class Stack:
    """A tensor whose slices along one axis have spaces of their own: queries, keys and values, say."""

    axis: int
    slices: list[Axes]


@dataclass
class Symmetry:
    """What may be permuted."""

    axes: dict[str, Axes]  # state dict name -> the space of each axis
    unknown: list[str] = field(default_factory=list)  # "operation in module" that was not understood

    def spaces(self) -> list[Space]:
        """Return the free leaves, each once, in the order of the tensors."""
        found = {leaf: None for axes in self.axes.values() for axis in axes for leaf in axis.leaves() if not leaf.fixed}
        return list(found)

    def permuted(self, state: Mapping[str, Tensor], permutations: Mapping[Space, Tensor]) -> dict[str, Tensor]:
        """Return the state dict with its axes in another order; leaves without a permutation stay."""
        moved = {}
        for name, tensor in state.items():
            for number, axis in enumerate(self.axes.get(name, [])):
                if any(leaf in permutations for leaf in axis.leaves()):
                    tensor = tensor.index_select(number, index_of(axis, permutations).to(tensor.device))
            moved[name] = tensor
        return moved


def find_symmetry(model: nn.Module, example: Tensor) -> Symmetry:
    """Follow the graph of `model` on an example input [B, ...] and find what may be permuted.

    Raises:
        what torch.export raises where a net cannot be exported.
    """
    model = model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example,), strict=False)
    tracer = Tracer(program.graph_module)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_buffers}
    fixed_tensors = {**program.constants, **dict(model.named_buffers())}
    persistent = set(model.state_dict())
    axes: dict[str, Axes] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name)
            tracer.values[node] = tracer.fresh(node, fixed=name is None)
            if name in persistent and node.users:
                axes[name] = tracer.values[node]
            elif node.name in constants:
                fix_uneven(tracer.values[node], fixed_tensors[constants[node.name]])
        elif node.op == "output":
            tracer.fix_all(tracer.arguments(node.args))
        else:
            tracer.step(node)
    by_tensor = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items() if name in axes}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in axes and id(tensor) in by_tensor:  # one tensor under two names
            axes[name] = axes[by_tensor[id(tensor)]]
    return Symmetry(axes, tracer.unknown)


def fix_uneven(axes: Axes, constant: Tensor) -> None:
    """Fix the axes of a constant along which its entries are not all equal."""
    for number, axis in enumerate(axes):
        if constant.numel() and not bool((constant == constant.narrow(number, 0, 1)).all()):
            fix(axis)


class Tracer:
    """Goes through the graph, and knows the axes of every value."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.module = module
        self.values: dict[torch.fx.Node, Any] = {}
        self.unknown: list[str] = []

    # -- values ------------------------------------------------------------------------------------------------------

    def fresh(self, node: torch.fx.Node, fixed: bool = False) -> Any:
        """Return new spaces for what a node gives."""

        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return [Space(int(size), fixed) for size in value.shape]
            return [of(part) for part in value] if isinstance(value, list | tuple) else value

        return of(node.meta.get("val"))

    def arguments(self, args: Any) -> list[Any]:
        """Return the values of all nodes among arguments, however nested."""
        if isinstance(args, torch.fx.Node):
            return [self.values[args]]
        if isinstance(args, Mapping):
            args = tuple(args.values())
        return [value for arg in args for value in self.arguments(arg)] if isinstance(args, list | tuple) else []

    def fix_all(self, value: Any) -> None:
        """Fix every axis of a value."""
        if isinstance(value, Space):
            fix(value)
        elif isinstance(value, Stack):
            self.fix_all(value.slices)
        elif isinstance(value, list | tuple):
            for part in value:
                self.fix_all(part)

    def step(self, node: torch.fx.Node) -> None:
        """Find the value of a node that is neither given nor the output."""
        if node.op == "get_attr":
            found = self.module
            for part in str(node.target).split("."):
                found = getattr(found, part)
            if isinstance(found, Tensor):
                self.values[node] = [Space(size) for size in found.shape]
                fix_uneven(self.values[node], found)
            else:
                self.values[node] = found  # a graph of its own
        else:
            self.values[node] = self.call(node)

    def inside(self, module: torch.fx.GraphModule, values: Sequence[Any]) -> Any:
        """Go through a graph within the graph."""
        outer, self.module = self.module, module
        given, result = iter(values), None
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "output":
                result = [self.values[part] for part in node.args[0]]
            else:
                self.step(node)
        self.module = outer
        return result

    def call(self, node: torch.fx.Node) -> Any:
        """Return the value of an operation."""
        name = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))

        def given(arg: Any) -> Any:
            if isinstance(arg, torch.fx.Node):
                return self.values[arg]
            return [given(part) for part in arg] if isinstance(arg, list | tuple) else arg

        args, kwargs = [given(arg) for arg in node.args], {key: given(arg) for key, arg in node.kwargs.items()}
        if any(isinstance(arg, Stack) for arg in args) and name not in STACKED:
            return self.not_understood(node, name)
        if name in POINTWISE:
            return self.broadcast(node, self.arguments([node.args, node.kwargs]))
        if name in REDUCTIONS:
            return self.reduce(node, name, args, kwargs)
        if name in SPATIAL:
            return self.spatial(node, args[0])
        if name in ALONG:
            return args[0]
        if name in CREATIONS:
            return self.fresh(node, fixed=True)
        handler: Callable[..., Any] | None = getattr(self, f"do_{name.strip('_')}", None)
        return self.not_understood(node, name) if handler is None else handler(node, *args, **kwargs)

    def not_understood(self, node: torch.fx.Node, name: str) -> Any:
        """Fix all that goes into an operation and all that comes out."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        where = stack[-1][0] if stack else ""
        self.unknown.append(f"{name} in {where}" if where else name)
        self.fix_all(self.arguments([node.args, node.kwargs]))
        return self.fresh(node, fixed=True)

    # -- families ----------------------------------------------------------------------------------------------------

    def broadcast(self, node: torch.fx.Node, values: Sequence[Any]) -> Any:
        """Make axes one that are broadcast to one."""
        found = [value for value in values if isinstance(value, list)]
        if len(found) == 1:
            return found[0]
        result: Axes = self.fresh(node)
        for axes in found:
            for mine, theirs in zip(reversed(result), reversed(axes), strict=False):
                if theirs.size == mine.size:
                    unify(mine, theirs)
        return result

    def reduce(self, node: torch.fx.Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Drop axes."""
        axes: Axes = args[0]
        dims = kwargs.get("dim", args[2] if "norm" in name and len(args) > 2 else args[1] if len(args) > 1 else None)
        if isinstance(dims, bool) or not isinstance(dims, int | list | None):
            return self.not_understood(node, name)
        gone = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims or range(len(axes)))}
        value = node.meta["val"]
        kept = value.ndim == len(axes) if isinstance(value, Tensor) else value[0].ndim == len(axes)
        left = [Space(1) if i in gone else axis for i, axis in enumerate(axes) if kept or i not in gone]
        return left if isinstance(value, Tensor) else [left for _ in value]

    def spatial(self, node: torch.fx.Node, axes: Axes) -> Any:
        """Keep images and channels; places are fixed."""
        self.fix_all(axes[2:])
        value = node.meta["val"]
        first = value if isinstance(value, Tensor) else value[0]
        result = [*axes[:2], *(Space(int(size), fixed=True) for size in first.shape[2:])]
        return result if isinstance(value, Tensor) else [result for _ in value]

    # -- layers ------------------------------------------------------------------------------------------------------

    def do_linear(self, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
        unify(x[-1], weight[-1])
        if bias is not None:
            unify(bias[0], weight[0])
        return [*x[:-1], *weight[:-1]]

    def do_conv2d(
        self, node: torch.fx.Node, x: Axes, weight: Axes, bias: Axes | None = None, *rest: Any, groups: int = 1
    ) -> Axes:
        groups = rest[3] if len(rest) > 3 else groups
        self.fix_all([x[2:], weight[2:]])
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

    do_conv1d = do_conv3d = do_conv2d

    def do_batch_norm(self, node: torch.fx.Node, x: Axes, *vectors: Any, **more: Any) -> Axes:
        for vector in (*vectors[:4], *more.values()):
            if isinstance(vector, list):
                unify(x[1], vector[0])
        return x

    def do_layer_norm(
        self, node: torch.fx.Node, x: Axes, shape: Sequence[int], weight: Any = None, bias: Any = None, *rest: Any
    ) -> Axes:
        for vector in (weight, bias):
            for mine, theirs in zip(x[-len(shape) :], vector or [], strict=False):
                unify(mine, theirs)
        return x

    do_rms_norm = do_layer_norm

    def do_group_norm(
        self, node: torch.fx.Node, x: Axes, groups: int, weight: Any = None, bias: Any = None, *rest: Any
    ) -> Axes:
        for vector in (weight, bias):
            if isinstance(vector, list):
                unify(x[1], vector[0])
        if 1 < groups < x[1].size:
            unify(x[1], product([Space(groups), Space(x[1].size // groups)]))
        return x

    def do_matmul(self, node: torch.fx.Node, a: Axes, b: Axes) -> Any:
        if len(a) < 2 or len(b) < 2:
            return self.not_understood(node, "matmul of a vector")
        unify(a[-1], b[-2])
        front = self.fresh(node)[:-2]
        for axes in (a[:-2], b[:-2]):
            for mine, theirs in zip(reversed(front), reversed(axes), strict=False):
                if mine.size == theirs.size:
                    unify(mine, theirs)
        return [*front, a[-2], b[-1]]

    do_bmm = do_mm = do_matmul

    def do_baddbmm(self, node: torch.fx.Node, add: Axes, a: Axes, b: Axes, **more: Any) -> Any:
        result = self.do_matmul(node, a, b)
        for mine, theirs in zip(reversed(result), reversed(add), strict=False):
            if mine.size == theirs.size:
                unify(mine, theirs)
        return result

    def do_scaled_dot_product_attention(
        self, node: torch.fx.Node, q: Axes, k: Axes, v: Axes, mask: Any = None, *rest: Any, **more: Any
    ) -> Any:
        mask = more.get("attn_mask", mask)
        unify(q[-1], k[-1])
        unify(k[-2], v[-2])
        result: Axes = [*self.fresh(node)[:-2], q[-2], v[-1]]
        for axes in (q, k, v):
            for mine, theirs in zip(result[:-2], axes[:-2], strict=True):
                if mine.size == theirs.size:
                    unify(mine, theirs)
        if isinstance(mask, list):
            for mine, theirs in zip(reversed([*result[:-1], k[-2]]), reversed(mask), strict=False):
                if mine.size == theirs.size:
                    unify(mine, theirs)
        return result

    def do_einsum(self, node: torch.fx.Node, equation: str, values: Sequence[Axes], **more: Any) -> Any:
        left, _, right = equation.replace(" ", "").partition("->")
        if "." in equation or not right:
            return self.not_understood(node, "einsum")
        known: dict[str, Space] = {}
        for letters, axes in zip(left.split(","), values, strict=True):
            for letter, axis in zip(letters, axes, strict=True):
                if known.setdefault(letter, axis).size != axis.size:
                    return self.not_understood(node, "einsum")
                unify(known[letter], axis)
        return [known[letter] for letter in right]

    # -- shapes ------------------------------------------------------------------------------------------------------

    def do_view(self, node: torch.fx.Node, x: Axes, *shape: Any) -> Any:
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
                stack = len(result), [self.split(piece, wanted[1:]) for piece in pieces]
                result += [Space(size) for size in wanted]  # overwritten below, slice by slice
            else:
                result += self.split(product(mine) if mine else Space(1), wanted)
        if stack is None:
            return result
        place, slices = stack
        return Stack(place, [[*result[:place], *own, *result[place + 1 + len(own) :]] for own in slices])

    do_reshape = do_unsafe_view = do_flatten = do_unflatten = do_squeeze = do_unsqueeze = do_view
    do_view_as = do_reshape_as = do_view

    def split(self, space: Space, sizes: Sequence[int]) -> Axes:
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

    def do_permute(self, node: torch.fx.Node, x: Any, dims: Sequence[int]) -> Any:
        if isinstance(x, Stack):
            order = [d % (len(x.slices[0]) + 1) for d in dims]
            left = [d - (d > x.axis) for d in order if d != x.axis]
            return Stack(order.index(x.axis), [[own[d] for d in left] for own in x.slices])
        return [x[d] for d in dims]

    def do_transpose(self, node: torch.fx.Node, x: Any, a: int, b: int) -> Any:
        rank = len(node.meta["val"].shape)
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
        return self.do_permute(node, x, order)

    def do_t(self, node: torch.fx.Node, x: Axes) -> Axes:
        return x[::-1]

    def do_contiguous(self, node: torch.fx.Node, x: Any, *rest: Any, **more: Any) -> Any:
        return x

    def do_unbind(self, node: torch.fx.Node, x: Any, dim: int = 0) -> Any:
        count = len(node.meta["val"])
        return [self.do_select(node, x, dim, number) for number in range(count)]

    def do_select(self, node: torch.fx.Node, x: Any, dim: int, number: int) -> Any:
        if isinstance(x, Stack):
            dim %= len(x.slices[0]) + 1
            if dim == x.axis:
                return x.slices[number]
            return self.not_understood(node, "select")
        dim %= len(x)
        fix(x[dim])
        return [axis for i, axis in enumerate(x) if i != dim]

    def do_getitem(self, node: torch.fx.Node, x: Any, number: int) -> Any:
        return x[number]

    def do_slice(
        self, node: torch.fx.Node, x: Axes, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> Any:
        dim %= len(x)
        size, left = x[dim].size, int(node.meta["val"].shape[dim])
        if left == size and step == 1:
            return x
        if step != 1:
            fix(x[dim])
            return [*x[:dim], Space(left, fixed=True), *x[dim + 1 :]]
        start = 0 if start is None else start + size if start < 0 else start
        return [*x[:dim], cut(x[dim], [start, left, size - start - left])[1], *x[dim + 1 :]]

    def do_narrow(self, node: torch.fx.Node, x: Axes, dim: int, start: int, length: int) -> Any:
        return self.do_slice(node, x, dim, start, start + length)

    def do_split(self, node: torch.fx.Node, x: Axes, sizes: Any, dim: int = 0) -> Any:
        lengths = [int(part.shape[dim]) for part in node.meta["val"]]
        dim %= len(x)
        return [[*x[:dim], piece, *x[dim + 1 :]] for piece in cut(x[dim], lengths)]

    do_chunk = do_split_with_sizes = do_tensor_split = do_split

    def do_cat(self, node: torch.fx.Node, values: Sequence[Axes], dim: int = 0) -> Any:
        values = [axes for axes in values if axes != []]
        dim %= len(values[0])
        for axes in values[1:]:
            for i, axis in enumerate(axes):
                if i != dim:
                    unify(values[0][i], axis)
        return [*values[0][:dim], total([axes[dim] for axes in values]), *values[0][dim + 1 :]]

    do_concat = do_concatenate = do_cat

    def do_stack(self, node: torch.fx.Node, values: Sequence[Axes], dim: int = 0) -> Any:
        for axes in values[1:]:
            for a, b in zip(values[0], axes, strict=True):
                unify(a, b)
        dim %= len(values[0]) + 1
        return [*values[0][:dim], Space(len(values), fixed=True), *values[0][dim:]]

    def do_expand(self, node: torch.fx.Node, x: Axes, *rest: Any, **more: Any) -> Any:
        sizes = [int(size) for size in node.meta["val"].shape]
        old = [Space(1)] * (len(sizes) - len(x)) + x
        return [axis if axis.size == size else Space(size) for axis, size in zip(old, sizes, strict=True)]

    do_expand_as = do_broadcast_to = do_expand

    def do_repeat(self, node: torch.fx.Node, x: Axes, times: Sequence[int]) -> Any:
        old = [Space(1)] * (len(times) - len(x)) + x
        return [product([Space(count), axis]) for count, axis in zip(times, old, strict=True)]

    def do_pad(self, node: torch.fx.Node, x: Axes, widths: Sequence[int], *rest: Any, **more: Any) -> Any:
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

    do_constant_pad_nd = do_pad

    def do_roll(self, node: torch.fx.Node, x: Axes, shifts: Any, dims: Any = ()) -> Any:
        for dim in [dims] if isinstance(dims, int) else dims or range(len(x)):
            fix(x[dim])
        return x

    def do_flip(self, node: torch.fx.Node, x: Axes, dims: Sequence[int]) -> Any:
        return self.do_roll(node, x, None, dims)

    def do_cumsum(self, node: torch.fx.Node, x: Axes, dim: int, **more: Any) -> Any:
        return self.do_roll(node, x, None, dim)

    def do_index(self, node: torch.fx.Node, x: Axes, indices: Sequence[Any]) -> Any:
        """Look entries up by number: the axes they are taken from stay as they are."""
        given = [i for i, index in enumerate(indices) if index is not None]
        self.fix_all([indices, [x[i] for i in given]])
        first, last = given[0], given[-1]
        rank = len(node.meta["val"].shape) - (len(x) - len(given))  # of what the numbers together look like
        place = first if last - first + 1 == len(given) else 0  # numbers that are apart come first
        left = [axis for i, axis in enumerate(x) if i not in given]
        found = [Space(int(size), fixed=True) for size in node.meta["val"].shape[place : place + rank]]
        return [*left[:place], *found, *left[place:]]

    def do_index_select(self, node: torch.fx.Node, x: Axes, dim: int, index: Axes) -> Any:
        return self.do_index(node, x, [*[None] * (dim % len(x)), index])

    def do_im2col(self, node: torch.fx.Node, x: Axes, kernel: Sequence[int], *rest: Any) -> Any:
        self.fix_all(x[2:])
        places = Space(int(node.meta["val"].shape[-1]), fixed=True)
        return [x[0], product([x[1], Space(prod(kernel), fixed=True)]), places]

    def do_col2im(self, node: torch.fx.Node, x: Axes, size: Sequence[int], kernel: Sequence[int], *rest: Any) -> Any:
        channels, window = self.split(x[1], [x[1].size // prod(kernel), prod(kernel)])
        self.fix_all([window, x[2]])
        return [x[0], channels, *(Space(int(side), fixed=True) for side in size)]

    def do_embedding(self, node: torch.fx.Node, weight: Axes, indices: Axes, *rest: Any) -> Any:
        return self.do_index(node, weight, [indices])

    def do_pixel_shuffle(self, node: torch.fx.Node, x: Axes, factor: int) -> Any:
        channels = self.split(x[1], [x[1].size // factor**2, factor**2])
        fix(channels[1])
        self.fix_all(x[2:])
        return [x[0], channels[0], *(Space(axis.size * factor, fixed=True) for axis in x[2:])]

    def do_wrap_with_autocast(self, node: torch.fx.Node, *args: Any, **more: Any) -> Any:
        place = next(i for i, arg in enumerate(args) if isinstance(arg, torch.fx.GraphModule))
        return self.inside(args[place], args[place + 1 :])

    do_wrap_with_set_grad_enabled = do_wrap_with_autocast

    def do_sym_size(self, node: torch.fx.Node, *rest: Any) -> Any:
        return node.meta["val"]

    def do_assert_tensor_metadata(self, node: torch.fx.Node, *rest: Any, **more: Any) -> Any:
        return None


STACKED = frozenset([
    "clone", "contiguous", "getitem", "permute", "select", "transpose", "unbind",
])  # fmt: skip


def groups_of(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Divide the axes of two shapes of as many entries into the smallest groups that match: ([i, ...], [j, ...])."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
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
    for user in node.users:
        name = getattr(user.target, "_opname", "")
        if name == "permute":
            order = [d % len(user.args[1]) for d in user.args[1]]
            if not is_taken_apart(user, order.index(dim)):
                return False
        elif name == "transpose":
            rank = len(user.meta["val"].shape)
            a, b = (d % rank for d in user.args[1:3])
            if not is_taken_apart(user, b if dim == a else a if dim == b else dim):
                return False
        elif name in ("contiguous", "clone"):
            if not is_taken_apart(user, dim):
                return False
        elif name in ("unbind", "select"):
            rank = len(node.meta["val"].shape)
            at = user.args[1] if len(user.args) > 1 else 0
            if at % rank != dim:
                return False
        else:
            return False
    return bool(node.users)
