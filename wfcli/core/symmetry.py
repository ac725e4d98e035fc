"""Which axes of a net's tensors may be permuted without changing its function, found by following its graph.

torch.export gives the graph of ATen operations; every axis of every tensor in it has a space (`spaces`). Each operation
says which axes must be permuted alike, which fall apart, and which must stay as they are. An operation that is not
known here fixes all axes that reach it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wfcli.core import graph_layers, graph_shapes
from wfcli.core.graph import Axes, Stack, Tracer, fix_uneven
from wfcli.core.spaces import Space, find_private, index_of


@dataclass
class Symmetry:
    """What may be permuted."""

    axes: dict[str, Axes]  # state dict name -> the space of each axis
    unknown: list[str] = field(default_factory=list)  # "operation in module" that was not understood

    def spaces(self) -> list[Space]:
        """Return the free leaves, each once, in the order of the tensors."""
        found = {leaf: None for axes in self.axes.values() for axis in axes for leaf in axis.leaves() if not leaf.fixed}
        return list(found)

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
    find_private(axes.values(), (value for found in tracer.values.values() for value in flat(found)))
    return Symmetry(axes, tracer.unknown)


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
