"""`wfcli inspect`: what a checkpoint is, from its header alone; with `weights`, what its numbers say too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wfcli.core.architectures import Layout, find_architecture, guess_architecture, match_layout, parse_arch_args
from wfcli.core.checkpoint import Checkpoint, TensorSpec, open_checkpoint
from wfcli.core.downloads import check_downloads
from wfcli.core.layouts import STATISTICS
from wfcli.core.sources import resolve_sources
from wfcli.engine.hooks import Hooks, Silent
from wfcli.errors import ArchitectureError, Problems

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InspectConfig:
    """Which checkpoints to look at; with `weights` their numbers are read too."""

    checkpoints: tuple[str, ...]
    weights: bool = False
    plan: bool = False


@dataclass(frozen=True)
class PlannedSpace:
    """Axes that are permuted alike."""

    size: int
    heads: int  # 0, or of how many entries of another space each has an order of its own
    axes: tuple[str, ...]  # "layer1.0.conv1.weight[0]"


@dataclass(frozen=True)
class Plan:
    """What may be permuted in a net without changing its function."""

    architecture: str
    spaces: tuple[PlannedSpace, ...]
    share: float  # of the parameters in a tensor with a space, 0..1
    unknown: tuple[str, ...]  # operations that were not understood: what they touch stays as it is


@dataclass(frozen=True)
class Entry:
    """What the header of one checkpoint says."""

    name: str
    file: str  # base name of the file or folder
    architecture: str | None  # guess, with arguments: "vgg11_bn_cifar(width=0.25)"; None where none is known
    layout: str | None  # "timm" or "torchvision"
    tensors: int
    parameters: int  # without the running statistics of norms
    dtypes: dict[str, int]  # safetensors name -> number of tensors
    classes: int | None  # rows of the head
    size: int  # bytes
    provenance: dict[str, Any] | None  # None: not written by wfcli


@dataclass(frozen=True)
class NonFinite:
    """A tensor with numbers that are none."""

    checkpoint: str
    tensor: str
    nan: int
    inf: int


@dataclass(frozen=True)
class WeightsReport:
    """What the weights say. The comparison is None for a single checkpoint, or where the tensors differ."""

    shared_base: bool | None
    cosines: tuple[float, ...] | None  # per checkpoint, to the mean of all: median over the layers, -1..1
    distances: tuple[float, ...] | None  # per checkpoint, from the mean, relative to its length
    sentence: str
    non_finite: tuple[NonFinite, ...]


@dataclass(frozen=True)
class InspectResult:
    """One entry per checkpoint, in order."""

    entries: tuple[Entry, ...]
    weights: WeightsReport | None
    plans: tuple[Plan, ...] = ()  # one per architecture, where they were asked for


def inspect(config: InspectConfig, hooks: Hooks | None = None) -> InspectResult:
    """Describe checkpoints from their headers, and with `weights` compare what is in them.

    Raises:
        SourceError, CheckpointError: all that lead nowhere or cannot be read; with `weights`, damaged downloads too.
    """
    problems = Problems()
    checkpoints: list[Checkpoint] = []
    for source in resolve_sources(config.checkpoints, "checkpoint", problems):
        with problems:
            checkpoints.append(open_checkpoint(source.path, source.name))
    problems.raise_all()
    if config.weights:  # headers alone are told without reading the rest
        check_downloads(checkpoints)
    entries = tuple(_describe(checkpoint) for checkpoint in checkpoints)
    hooks = hooks or Silent()
    weights = _read_weights(checkpoints, hooks) if config.weights else None
    return InspectResult(entries, weights, _plans(checkpoints, hooks) if config.plan else ())


def _plans(checkpoints: Sequence[Checkpoint], hooks: Hooks) -> tuple[Plan, ...]:
    """Follow the net of every architecture among the checkpoints.

    Raises:
        ArchitectureError: one is unknown, or cannot be followed.
    """
    from wfcli.engine.align import follow, free_share

    plans: dict[str, Plan] = {}
    problems = Problems()
    for checkpoint in checkpoints:
        label, layout = _recognise(checkpoint)
        with problems:
            if label is None or layout is None:
                raise ArchitectureError(
                    f"{checkpoint.name}: got tensors of no architecture that is known, expected one to follow",
                    hint="files written by wfcli, and those of listed architectures, say which net they are of",
                )
            if label in plans:
                continue
            model, _, symmetry = follow(layout.arch, layout.num_classes, hooks)
            spaces = tuple(
                PlannedSpace(
                    size=space.size,
                    heads=0 if space.within is None else space.within.find().size,
                    axes=tuple(
                        f"{name}[{number}]"
                        for name, axes in symmetry.axes.items()
                        for number, axis in enumerate(axes)
                        if space in axis.leaves()
                    ),
                )
                for space in symmetry.spaces()
            )
            plans[label] = Plan(label, spaces, free_share(model, symmetry), tuple(dict.fromkeys(symmetry.unknown)))
    problems.raise_all()
    return tuple(plans.values())


def _describe(checkpoint: Checkpoint) -> Entry:
    specs = checkpoint.specs
    label, layout = _recognise(checkpoint)
    return Entry(
        name=checkpoint.name,
        file=checkpoint.path.name,
        architecture=label,
        layout=layout.name if layout else None,
        tensors=len(specs),
        parameters=sum(
            spec.numel for key, spec in specs.items() if _is_floating(spec) and not key.endswith(STATISTICS)
        ),
        dtypes=dict(sorted(Counter(spec.dtype for spec in specs.values()).items())),
        classes=layout.num_classes if layout else None,
        size=checkpoint.size,
        provenance=checkpoint.provenance,
    )


def _recognise(checkpoint: Checkpoint) -> tuple[str | None, Layout | None]:
    """Believe the provenance where its architecture fits the tensors, else guess from them."""
    written = (checkpoint.provenance or {}).get("architecture")
    if written is not None:
        try:
            arch = find_architecture(written["name"], written.get("args", {}))
            return arch.label, match_layout(arch, checkpoint.specs, checkpoint.name)
        except ArchitectureError:
            pass  # of another version, or edited by hand
    label = guess_architecture(checkpoint.specs)
    if label is None:
        return None, None
    name, _, args = label.removesuffix(")").partition("(")
    arch = find_architecture(name, parse_arch_args(args.split(", ") if args else ()))
    return label, match_layout(arch, checkpoint.specs, checkpoint.name)


def _is_floating(spec: TensorSpec) -> bool:
    return spec.dtype.startswith(("F", "BF"))


def _read_weights(checkpoints: Sequence[Checkpoint], hooks: Hooks) -> WeightsReport:
    from wfcli.core.regime import regime

    bad: list[NonFinite] = []
    for done, checkpoint in enumerate(checkpoints):
        hooks.progress("reading weights", done, len(checkpoints))
        bad += _find_non_finite(checkpoint)
    hooks.progress("reading weights", len(checkpoints), len(checkpoints))
    shapes = [
        {key: spec.shape for key, spec in checkpoint.specs.items() if _is_floating(spec)} for checkpoint in checkpoints
    ]
    names = [key for key, shape in shapes[0].items() if len(shape) >= 2]
    sentence = None
    if len(checkpoints) < 2:
        sentence = "one checkpoint: nothing to compare it with"
    elif any(other != shapes[0] for other in shapes):
        sentence = "the checkpoints hold different tensors: not compared"
    elif not names:
        sentence = "no weights of two or more dimensions: not compared"
    elif bad:
        sentence = "there are numbers that are not finite: not compared"
    if sentence is not None:
        return WeightsReport(None, None, None, sentence, tuple(bad))
    found = regime(checkpoints, names)
    told = found.sentence([checkpoint.name for checkpoint in checkpoints])
    return WeightsReport(found.shared_base, found.cosines, found.distances, told, ())


def _find_non_finite(checkpoint: Checkpoint) -> list[NonFinite]:
    found = []
    for key, spec in checkpoint.specs.items():
        if _is_floating(spec):
            nan, inf = count_non_finite(checkpoint[key])
            if nan or inf:
                found.append(NonFinite(checkpoint.name, key, nan, inf))
    return found


def count_non_finite(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many numbers of a tensor are NaN and how many are infinite."""
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # the 8-bit floats know no isnan
    return int(wide.isnan().sum()), int(wide.isinf().sum())
