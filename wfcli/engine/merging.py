"""Merge methods that go tensor by tensor: their options, their base, and the student's tensors as they come.

T teachers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wfcli.core.architectures import Architecture, Layout, match_layout
from wfcli.core.checkpoint import TensorSpec, file_order, open_checkpoint
from wfcli.core.methods import METHODS
from wfcli.core.pieces import in_pieces
from wfcli.core.sources import Source, resolve_source
from wfcli.engine.filters import BASE, Choice, find_choices, needs_base
from wfcli.engine.finite import Finite
from wfcli.engine.heads import Heads, head_tensor
from wfcli.engine.hooks import Hooks
from wfcli.engine.teachers import Teachers, check_bytes
from wfcli.engine.writing import AHEAD
from wfcli.errors import CheckpointError, WfError

if TYPE_CHECKING:
    from torch import Tensor

    from wfcli.engine.fuse import FuseConfig

SHARE: tuple[str, Callable[[float], bool]] = ("above 0, at most 1", lambda value: 0 < value <= 1)
NUMBER: tuple[str, Callable[[float], bool]] = ("a finite number", math.isfinite)
PARAMS: Mapping[str, tuple[str, Callable[[float], bool]]] = {  # of all methods: what their values may be
    "density": SHARE,
    "diagonal": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "lr": ("above 0, finite", lambda value: 0 < value < math.inf),
    "power": NUMBER,
    "scale": NUMBER,
    "start": NUMBER,
    "steps": ("a whole number, at least 1", lambda value: value >= 1 and value == int(value)),
}


@dataclass(frozen=True)
class Base:
    """The teachers' common ancestor."""

    file: Finite
    source: Source
    other: frozenset[str]  # tensors that it lacks, or has in another shape: a head of other classes

    def view(self, layout: Layout) -> dict[str, Tensor]:
        """Read its tensors that the teachers have too, by timm's names."""
        named = layout.timm_view(self.file)
        return {
            timm_name: named[timm_name] for name, (timm_name, _) in layout.to_timm.items() if name not in self.other
        }


@dataclass(frozen=True)
class Settings:
    """What a method goes by."""

    base: Base | None
    weights: tuple[float, ...]  # of the teachers; they sum to 1
    params: Mapping[str, float]
    own: Mapping[str, Choice] = field(default_factory=dict)  # tensors that are made otherwise
    heads: Heads | None = None  # None: all have the same classes


def check_method(config: FuseConfig) -> None:
    """Refuse an unknown method, and options that it does not take.

    Raises:
        WfError: all that is wrong.
    """
    if config.method == "auto":
        return
    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        raise WfError(
            f"unknown method {config.method!r}{f'; did you mean {near[0]}?' if near else ''}",
            hint=f"use one of auto, {', '.join(METHODS)}; wfcli methods says what each does",
        )
    method, problems = METHODS[config.method], []
    if method.align and config.align == "none":
        problems.append("--align none: it averages teachers in one frame")
    if config.base is not None and not method.base and not any(needs_base(value) for _, _, value in config.rules):
        problems.append("--base: it takes none")
    if config.base is None and method.base == "must":
        problems.append("--base: got none, expected the checkpoint that the teachers were fine-tuned from")
    if config.weights is not None and not method.weights:
        problems.append("--weights: it takes none")
    if config.weights is None and config.method == "weighted":
        problems.append("--weights: got none, expected a number for every teacher")
    if config.weights is not None and not (
        all(0 <= weight < math.inf for weight in config.weights) and sum(config.weights) > 0
    ):
        problems.append(f"--weights: got {_listed(config.weights)}, expected numbers from 0 on, not all of them 0")
    for name, value in config.params:
        if name not in method.params:
            known = ", ".join(method.params) or "none"
            problems.append(f"--param {name}: unknown, its parameters are: {known}")
        elif wrong := _wrong(name, value):
            problems.append(f"--param {name}: {wrong}")
    if config.base is None and method.base == "may" and any(name == "start" for name, _ in config.params):
        problems.append("--param start: of no use without --base")
    if problems:
        raise WfError(
            *(f"--method {config.method}: {problem}" for problem in problems), hint="wfcli methods says what each takes"
        )


def _wrong(name: str, value: float) -> str | None:
    """Say what is wrong with the value of a parameter, if anything."""
    what, holds = PARAMS[name]
    return None if holds(value) else f"got {value:g}, expected {what}"


def settle(config: FuseConfig, teachers: Teachers, heads: Heads | None = None) -> Settings:
    """Find base, weights and parameters for these teachers, from headers.

    Raises:
        SourceError, CheckpointError, ArchitectureError: the base cannot be read, or is of another architecture.
        WfError: another number of weights than of teachers, or teachers whose images nobody has counted; rules for
            tensors that there are not, or that cannot be followed.
    """
    count = len(teachers.checkpoints)
    if config.method == "slerp" and count != 2:
        raise WfError(f"--method slerp: got {count} teachers, expected 2", hint="karcher takes any number of them")
    if config.weights is not None and len(config.weights) != count:
        names = ", ".join(checkpoint.name for checkpoint in teachers.checkpoints)
        raise WfError(
            f"--weights: got {len(config.weights)} numbers, expected {count}",
            hint=f"one for each, in this order: {names}",
        )

    def shares(method: str, given: tuple[float, ...] | None) -> tuple[float, ...]:
        weights = given or (_images(teachers) if method == "fedavg" else (1.0,) * count)
        return tuple(weight / sum(weights) for weight in weights)

    own = shares(config.method, config.weights)
    base = None if config.base is None else _open_base(config, teachers)
    params = {**METHODS[config.method].params, **dict(config.params)} if config.method in METHODS else {}
    choices = find_choices(config, teachers, own, shares, _wrong)
    if heads is not None and heads.names & set(choices):
        raise WfError(
            f"--set names {', '.join(sorted(heads.names & set(choices)))}, which --heads {config.heads} decides",
            hint="leave out one of the two, or narrow the pattern",
        )
    return Settings(base, own, params, choices, heads)


def merged(
    config: FuseConfig, settings: Settings, specs: Mapping[str, TensorSpec], teachers: Sequence[Finite], hooks: Hooks
) -> Iterator[tuple[str, Tensor]]:
    """Yield the student's tensors in the order of its file, large ones in pieces where the method goes by pieces."""
    method = "weighted" if config.method == "soup" else config.method
    rest = Choice(method, settings.weights, settings.params)
    for done, name in enumerate(file_order(specs)):
        for piece in one_tensor(name, settings.own.get(name, rest), config.seed, settings, teachers):
            yield name, piece
        hooks.progress("merging", done + 1, len(specs))


def one_tensor(
    name: str, choice: Choice, seed: int, settings: Settings, teachers: Sequence[Finite]
) -> Iterator[Tensor]:
    """Yield one tensor of the student in pieces."""
    from wfcli.core.merges import Versions, merge

    base = settings.base
    has_base = base is not None and name not in base.other
    if settings.heads is not None and name in settings.heads.names:
        yield head_tensor(settings.heads, name, teachers, settings.weights)
    elif choice.method == "copy":
        if choice.source == BASE and not has_base:
            raise WfError(
                f"--set: copy:base: {name} is not in the base, or of another shape", hint="copy it from a teacher"
            )
        yield from in_pieces(base.file if base is not None and choice.source == BASE else teachers[choice.source], name)
    else:
        versions = Versions(
            name, teachers, base.file if base and has_base else None, choice.weights, choice.params, seed
        )
        mean = base is not None and not has_base  # a new head: nothing to go from
        yield from merge("weighted" if mean else choice.method, versions)


def _open_base(config: FuseConfig, teachers: Teachers) -> Base:
    assert config.base is not None
    source = resolve_source(config.base, "base")
    checkpoint = open_checkpoint(source.path, source.name)
    layout = match_layout(config.architecture, checkpoint.specs, checkpoint.name)
    wanted = teachers.layout.name
    if layout.name != wanted:
        raise CheckpointError(
            f"{checkpoint.name}: got tensors named as in {layout.name}, expected {wanted} as in the teachers",
            hint="base and teachers share one layout: load and save one of them with the library of the others",
        )
    if checkpoint.size <= AHEAD and all(one.known_digest for one in teachers.checkpoints):
        check_bytes(teachers.checkpoints, checkpoint)  # of large files: once they were read
    other = frozenset(
        name
        for name, shape in teachers.layout.files.items()
        if name not in checkpoint.specs or checkpoint.specs[name].shape != shape
    )
    return Base(Finite(checkpoint), source, other)


def look_at_base(arch: Architecture, teachers: Teachers, base: Base, checked: Sequence[Finite], hooks: Hooks) -> None:
    """Warn of a base that the teachers were hardly made from, as a few tensors tell."""
    from wfcli.engine.relation import is_ancestor

    if not is_ancestor(arch, teachers, checked[0], base.file, base.other):
        hooks.warn(
            f"--base {base.file.checkpoint.name}: the teachers do not look as if they were fine-tuned from it: what "
            "they have learned is measured from the wrong place"
        )


def image_counts(teachers: Teachers) -> tuple[float | None, ...]:
    """Return the number of images that each teacher was trained on, from the records in the files; None: unknown.

    Teachers of all images of one dataset count alike.
    """
    records = [checkpoint.provenance or {} for checkpoint in teachers.checkpoints]
    found = [(record.get("share") or {}).get("images") for record in records]
    one_dataset = all(record.get("data") == records[0].get("data") for record in records)
    if one_dataset and all(number == "all" for number in found):
        return (1.0,) * len(found)
    return tuple(float(number) if isinstance(number, int) and number > 0 else None for number in found)


def _images(teachers: Teachers) -> tuple[float, ...]:
    found = image_counts(teachers)
    unknown = [c.name for c, number in zip(teachers.checkpoints, found, strict=True) if number is None]
    if unknown:
        raise WfError(
            *(f"--method fedavg: {name}: its file does not say on how many images it was trained" for name in unknown),
            hint="give the numbers with --weights, in the order of the teachers",
        )
    return tuple(number for number in found if number is not None)


def _listed(weights: Sequence[float]) -> str:
    return ",".join(f"{weight:g}" for weight in weights)
