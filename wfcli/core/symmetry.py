"""Which axes of a net's tensors may be permuted without changing its function, found by following its graph.

torch.export gives the graph of ATen operations; every axis of every tensor in it has a space (`spaces`). Each operation
says which axes must be permuted alike, which fall apart, and which must stay as they are. An operation that is not
known here fixes all axes that reach it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from wfcli.core import graph_layers, graph_shapes
from wfcli.core.graph import Axes, Stack, Tracer, fix_uneven, operation
from wfcli.core.spaces import Space, find_private, index_of, is_fixed, product

READERS = frozenset(["conv1d", "conv2d", "conv3d", "linear", "matmul", "scaled_dot_product_attention"])


@dataclass
class Symmetry:
    """What may be permuted."""

    axes: dict[str, Axes]  # state dict name -> the space of each axis
    unknown: list[str] = field(default_factory=list)  # "operation in module" that was not understood
    watched: dict[str, Axes] = field(default_factory=dict)  # node of the graph that goes into a layer -> its axes
    program: torch.export.ExportedProgram | None = None

    def spaces(self) -> list[Space]:
        """Return the free leaves, each once, in the order of the tensors."""
        found = {leaf: None for axes in self.axes.values() for axis in axes for leaf in axis.leaves() if not leaf.fixed}
        return list(found)

    def of_activations(self) -> Symmetry:
        """Return the same of what `observe` gives: the free axes of what is watched, then one of places."""
        axes = {
            name: [product([found[number] for number in group]) for group in free_axes(found)]
            for name, found in self.watched.items()
        }
        return Symmetry({name: [*found, Space(0, fixed=True)] for name, found in axes.items()})

    def identity(self) -> dict[Space, Tensor]:
        """Return the permutations that move nothing: int64 [n], or [H, n] of a space within another."""
        return {space: torch.arange(space.size).expand(*apart(space), -1) for space in self.spaces()}

    def random(self, draw: torch.Generator) -> dict[Space, Tensor]:
        """Return permutations drawn at random."""
        return {space: torch.rand(*apart(space), space.size, generator=draw).argsort(-1) for space in self.spaces()}

    def permuted(self, state: Mapping[str, Tensor], permutations: Mapping[Space, Tensor]) -> dict[str, Tensor]:
        """Return the state dict with its axes in another order; leaves without a permutation stay."""
        moved = {}
        for name, tensor in state.items():
            for number, axis in enumerate(self.axes.get(name, [])):
                if any(leaf in permutations for leaf in axis.leaves()):
                    tensor = tensor.index_select(number, index_of(axis, permutations).to(tensor.device))
            moved[name] = tensor
        return moved


def compose(first: Mapping[Space, Tensor], second: Mapping[Space, Tensor]) -> dict[Space, Tensor]:
    """Return the permutations that do what `first` and then `second` do; those that `second` lacks stay."""
    both = dict(first)
    for space, order in second.items():
        if space.within is None:
            both[space] = first[space][order]
            continue
        before = first[space.within.find()]  # the original number of what has a number in between
        both[space] = first[space].clone()
        both[space][before] = first[space][before].gather(1, order)
    return both


def inverse(permutations: Mapping[Space, Tensor]) -> dict[Space, Tensor]:
    """Return the permutations that undo some."""
    undone = {}
    for space, order in permutations.items():
        here = order if space.within is None else order[permutations[space.within.find()]]
        undone[space] = here.argsort(-1)
    return undone


def apart(space: Space) -> tuple[int, ...]:
    """Return (H,) for a space that is permuted within each of H entries of another, else ()."""
    return () if space.within is None else (space.within.find().size,)


def find_symmetry(model: nn.Module, example: Tensor) -> Symmetry:
    """Follow the graph of `model` on an example input [B, ...] and find what may be permuted.

    Raises:
        what torch.export raises where a net cannot be exported.
    """
    model = model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example,), strict=False)
    tracer = Tracer(program.graph_module, {**graph_layers.RULES, **graph_shapes.RULES})
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
    find_private(axes.values(), (value for found in tracer.values.values() for value in flat(found)), tracer.apart)
    watched = {node.name: tracer.values[node] for node in program.graph.nodes if is_watched(node, tracer.values)}
    return Symmetry(axes, tracer.unknown, watched, program)


def is_watched(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> bool:
    """Tell whether a node's value goes into a layer or an attention, and has a free axis."""
    value = values.get(node)
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not isinstance(value, list):
        return False
    into = {operation(user) for user in node.users if user.args and node in user.args[:3]}
    within = [leaf.within for axis in value for leaf in axis.leaves() if leaf.within is not None]
    simple = len(within) == len(set(within))  # two of them within one have no order that one axis could have
    return bool(into & READERS) and simple and not all(is_fixed(axis) for axis in value)


def free_axes(axes: Axes) -> list[list[int]]:
    """Return the numbers of the free axes; one that is permuted within another comes in one group with it."""
    free = [number for number, axis in enumerate(axes) if not is_fixed(axis)]
    outer = {leaf.within.find(): number for number in free for leaf in axes[number].leaves() if leaf.within is not None}
    groups = []
    for number in free:
        leaf = axes[number].find()
        if leaf.kind == "leaf" and leaf.within is not None:
            continue
        groups.append([number, outer[leaf]] if leaf in outer and outer[leaf] != number else [number])
    return groups


@torch.no_grad()
def observe(symmetry: Symmetry, state: Mapping[str, Tensor], images: Tensor, places: int = 2048) -> dict[str, Tensor]:
    """Run a net on images [B, ...], as many as the example of `find_symmetry`, and return what goes into its layers.

    Each of [free axes, at most `places`]: at the same places (image, pixel, token) whatever the net; over them every
    entry has mean 0 and length 1, or is 0 where it never varies.
    """
    assert symmetry.program is not None
    program = symmetry.program
    given = {**program.constants, **program.state_dict, **state}
    args = [
        images if spec.kind is InputKind.USER_INPUT else _like(given[str(spec.target)], images)
        for spec in program.graph_signature.input_specs
    ]
    watcher = Watcher(program.graph_module, symmetry.watched, places)
    watcher.run(*args)
    seen = {}
    for name, value in watcher.seen.items():
        value = value - value.mean(-1, keepdim=True)
        length = value.norm(dim=-1, keepdim=True)
        seen[name] = torch.where(length > 1e-6 * length.max(), value / length.clamp_min(1e-12), 0.0)
    return seen


def _like(tensor: Tensor, images: Tensor) -> Tensor:
    """Return a tensor in the precision of the images: the graph computes in one, whatever a file has."""
    return tensor.to(images.dtype) if tensor.is_floating_point() else tensor


class Watcher(torch.fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, [free axes, at most `places`]; whole ones fill the memory."""

    def __init__(self, module: torch.fx.GraphModule, watched: Mapping[str, Axes], places: int) -> None:
        super().__init__(module)
        self.watched, self.places = watched, places
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run a node; keep some of what it gives: at the same places in every run."""
        value = super().run_node(n)
        if n.name in self.watched:
            groups = free_axes(self.watched[n.name])
            first = [number for group in groups for number in group]
            sizes = [prod(value.shape[number] for number in group) for group in groups]
            rows = value.movedim(first, list(range(len(first)))).reshape(*sizes, -1)
            order = torch.randperm(rows.shape[-1], generator=torch.Generator().manual_seed(0))
            self.seen[n.name] = rows[..., order[: self.places]].float()
        return value


def flat(value: Any) -> Iterator[Axes]:
    """Yield the axes of every tensor in a value of the graph."""
    if isinstance(value, Stack):
        yield from value.slices
    elif isinstance(value, list | tuple):
        if value and all(isinstance(part, Space) for part in value):
            yield list(value)
        else:
            for part in value:
                yield from flat(part)
