"""A net's graph, gone through operation by operation: every axis of every value in it has a space (`spaces`).

torch.export gives the graph of ATen operations. The rules of `graph_layers` and `graph_shapes` say of each operation
which axes must be permuted alike, which fall apart, and which must stay as they are. An operation without a rule fixes
all axes that reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wfcli.core.spaces import Space, fix

Axes = list[Space]
Rule = Callable[..., Any]  # (tracer, node, the operation's arguments) -> the axes of what it gives


@dataclass
class Stack:
    """A tensor whose slices along one axis have spaces of their own: queries, keys and values, say."""

    axis: int
    slices: list[Axes]


STACKED = frozenset([
    "clone", "contiguous", "getitem", "permute", "select", "transpose", "unbind",
])  # fmt: skip


class Tracer:
    """Goes through the graph, and knows the axes of every value."""

    def __init__(self, module: torch.fx.GraphModule, rules: Mapping[str, Rule]) -> None:
        self.module, self.rules = module, rules
        self.values: dict[torch.fx.Node, Any] = {}
        self.unknown: list[str] = []
        self.apart: list[tuple[Space, Axes]] = []  # see `keep_apart`

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

    def keep_apart(self, axes: Axes, mixed: Axes) -> None:
        """Let nothing in some axes have an order of its own in every entry of `mixed`, whose entries meet here."""
        self.apart += [(axis, mixed) for axis in axes]

    def step(self, node: torch.fx.Node) -> None:
        """Find the value of a node that is neither given nor the output."""
        if node.op == "get_attr":
            found: Any = self.module
            for part in str(node.target).split("."):
                found = getattr(found, part)
            self.values[node] = found  # a graph of its own
            if isinstance(found, Tensor):
                self.values[node] = [Space(size) for size in found.shape]
                fix_uneven(self.values[node], found)
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
        """Return the value of an operation, by its rule."""
        name = operation(node)

        def given(arg: Any) -> Any:
            if isinstance(arg, torch.fx.Node):
                return self.values[arg]
            return [given(part) for part in arg] if isinstance(arg, list | tuple) else arg

        args, kwargs = [given(arg) for arg in node.args], {key: given(arg) for key, arg in node.kwargs.items()}
        rule = self.rules.get(name)
        if rule is None or (any(isinstance(arg, Stack) for arg in args) and name not in STACKED):
            return self.not_understood(node)
        return rule(self, node, *args, **kwargs)

    def not_understood(self, node: torch.fx.Node) -> Any:
        """Fix all that goes into an operation and all that comes out."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        where = stack[-1][0] if stack else ""
        self.unknown.append(f"{operation(node)} in {where}" if where else operation(node))
        self.fix_all(self.arguments([node.args, node.kwargs]))
        return self.fresh(node, fixed=True)


def operation(node: torch.fx.Node) -> str:
    """Return the name of what a node does."""
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target))).strip("_")


def fix_uneven(axes: Axes, constant: Tensor) -> None:
    """Fix the axes of a constant along which its entries are not all equal."""
    for number, axis in enumerate(axes):
        if constant.numel() and not bool((constant == constant.narrow(number, 0, 1)).all()):
            fix(axis)
