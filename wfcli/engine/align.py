"""Independent teachers in one frame: permuted as they are read, and proved to be the nets they were.

T teachers, B images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config
from wfcli.core.graph_plan import with_own_norms
from wfcli.core.matching import Permutations, State, comparable, match_activations, match_all, match_to
from wfcli.core.pieces import in_pieces
from wfcli.core.plan import plan_layers
from wfcli.core.spaces import index_of, is_fixed
from wfcli.core.symmetry import Symmetry, find_symmetry, observe
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.teachers import Teachers
from wfcli.errors import ArchitectureError

MOST_CHANGE = 1e-8  # of a teacher's answers in float64, relative to the largest
PROOF_IMAGES = 8  # that it is looked at with, at most
TRIES = 3  # orders of the spaces; one for nets of more than so many parameters:
SMALL = 10_000_000


@dataclass(frozen=True)
class Alignment:
    """What was done to bring the teachers into one frame."""

    how: str  # "weights", or "activations on 256 images"
    moved: tuple[str, ...]  # names of the teachers with units in another order
    spaces: int  # that may be permuted
    share: float  # of the parameters in a tensor with such a space, 0..1
    fixed: tuple[str, ...]  # operations that were not understood: what they touch stays as it is
    change: float  # the largest of a teacher's answers, relative, in float64


@dataclass
class Aligned(Finite):
    """A teacher whose units stand in the order of another's."""

    orders: Mapping[str, list[tuple[int, Tensor]]] = field(default_factory=dict)  # name in the file -> axis, order
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # timm's, of these tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        if name not in self.orders:
            return tensor
        moved = tensor.reshape(self.shapes[name])
        for axis, order in self.orders[name]:
            moved = moved.index_select(axis, order)
        return moved.reshape(tensor.shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Read a tensor in pieces of rows, as `in_pieces` tells; one with units in another order is read whole."""
        yield from in_pieces({name: self[name]}, name) if name in self.orders else super().pieces(name)


@dataclass(frozen=True)
class Found:
    """Permutations that bring some nets into one frame, and what they permute."""

    symmetry: Symmetry
    permutations: list[Permutations]  # of each net
    share: float
    change: float


def align(
    arch: Architecture,
    teachers: Teachers,
    checked: Sequence[Finite],
    seed: int,
    hooks: Hooks,
    images: Tensor | None = None,
    reference: State | None = None,
) -> tuple[list[Finite], Alignment]:
    """Match all teachers, by their weights or by what they make of images [B, ...], and return them in one frame.

    With a `reference` it is that one's, and weights alone count.

    Raises:
        ArchitectureError: the net cannot be followed, or a teacher would not be the net it was.
        CheckpointError: numbers that are not finite.
    """
    for teacher in checked:
        for name in teacher:
            teacher[name]  # read, and looked at
    raise_nonfinite(checked)
    views = [teachers.layout.timm_view(teacher) for teacher in checked]
    found = find_frame(arch, teachers.num_classes, views, seed, hooks, images, reference)
    aligned = [
        _aligned(teacher, teachers, found.symmetry, permutations)
        for teacher, permutations in zip(checked, found.permutations, strict=True)
    ]
    how = "weights" if images is None else f"activations on {len(images)} images"
    return list(aligned), Alignment(
        how="weights, in the generator's frame" if reference else how,
        moved=tuple(one.checkpoint.name for one in aligned if one.orders),
        spaces=len(found.symmetry.spaces()),
        share=found.share,
        fixed=tuple(dict.fromkeys(found.symmetry.unknown)),
        change=found.change,
    )


def find_frame(
    arch: Architecture,
    num_classes: int,
    views: Sequence[State],
    seed: int,
    hooks: Hooks,
    images: Tensor | None = None,
    reference: State | None = None,
) -> Found:
    """Match nets (timm's names) as `align` does.

    Raises:
        ArchitectureError: the net cannot be followed, or one would not be the net it was.
    """

    def told(done: int, total: int) -> None:
        hooks.progress("aligning", done, total)

    model, example, symmetry = follow(arch, num_classes, hooks, images)
    plan = with_own_norms(model, plan_layers(model, head_keys(arch)[0].removesuffix(".weight")), example[:2])
    tries = TRIES if sum(parameter.numel() for parameter in model.parameters()) <= SMALL else 1
    share = free_share(model, symmetry)
    del model  # large ones are not kept beside the nets that are matched
    if images is None:
        symmetry = replace(symmetry, program=None)  # which holds the weights of the one that was followed
    nets = [lambda view=view: comparable(symmetry, plan, view) for view in views]
    with torch.inference_mode():
        if reference is not None:
            found = match_to(symmetry, nets, comparable(symmetry, plan, reference), seed, tries, told)
        elif images is None:
            found = match_all(symmetry, nets, seed, tries, told)
        else:
            seen = []
            for number, view in enumerate(views):
                seen.append(observe(symmetry, dict(view), images))
                hooks.progress("looking at activations", number + 1, len(views))
            found = match_activations(symmetry, nets, seen, seed, tries, told)
        changes = []
        model = build_model(arch, num_classes).eval().double()
        for number, (view, permutations) in enumerate(zip(views, found, strict=True)):
            changes.append(_change(model, example[:PROOF_IMAGES].double(), view, symmetry, permutations))
            hooks.progress("checking", number + 1, len(views))
    if not all(change <= MOST_CHANGE for change in changes):
        worst = max(changes, key=lambda change: (math.isnan(change), change))
        raise ArchitectureError(
            f"{arch.label}: aligned, answers move by {worst:.1e} of the largest, expected at most {MOST_CHANGE:.0e}",
            hint="this is a bug of wfcli, please report it; --align none leaves the teachers as they are",
        )
    return Found(symmetry, found, share, max(changes))


def follow(
    arch: Architecture, num_classes: int, hooks: Hooks, images: Tensor | None = None
) -> tuple[nn.Module, Tensor, Symmetry]:
    """Build a net and find what may be permuted in it, following `images` or else two of noise, which are returned.

    Raises:
        ArchitectureError: its graph cannot be exported.
    """
    model, size = build_model(arch, num_classes).eval(), input_config(arch).size
    channels = int(dict(arch.args).get("in_chans", 3))
    noise = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    example = noise if images is None else images
    hooks.progress("following the net", 0, 1)
    try:
        symmetry = find_symmetry(model, example)
    except Exception as error:  # torch.export raises what it likes
        told = str(error).strip().splitlines() or [""]
        raise ArchitectureError(
            f"{arch.label}: its graph cannot be followed ({type(error).__name__}: {told[0]})",
            hint="--align none fuses the teachers as they are; only fine-tunes of one base give a good student so",
        ) from error
    hooks.progress("following the net", 1, 1)
    return model, example, symmetry


def free_share(model: nn.Module, symmetry: Symmetry) -> float:
    """Return the share of the parameters in a tensor with an axis that may be permuted, 0..1."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    free = [name for name in sizes if not all(is_fixed(axis) for axis in symmetry.axes.get(name, []))]
    return sum(sizes[name] for name in free) / max(1, sum(sizes.values()))


def _change(model: nn.Module, example: Tensor, state: State, symmetry: Symmetry, permutations: Permutations) -> float:
    """Return how far a net's answers move, in float64, relative to the largest; `model` takes its weights."""
    own = model.state_dict()
    said = []
    for orders in ({}, permutations):
        for name in state:  # one by one; a file may lack BatchNorm's counters
            own[name].copy_(symmetry.permuted({name: state[name]}, orders)[name])
        said.append(model.train().eval()(example))  # some keep what they computed from weights until then
    largest = said[0].abs().max().clamp_min(torch.finfo(torch.float64).tiny)  # a head may be all zeros
    return float((said[0] - said[1]).abs().max() / largest)


def _aligned(teacher: Finite, teachers: Teachers, symmetry: Symmetry, permutations: Permutations) -> Aligned:
    orders: dict[str, list[tuple[int, Tensor]]] = {}
    for name, (timm_name, _) in teachers.layout.to_timm.items():
        for axis, space in enumerate(symmetry.axes.get(timm_name, [])):
            order = index_of(space, permutations)
            if not torch.equal(order, torch.arange(len(order))):
                orders.setdefault(name, []).append((axis, order))
    shapes = {name: teachers.layout.to_timm[name][1] for name in orders}
    return Aligned(teacher.checkpoint, teacher.problems, teacher.seen, orders, shapes)
