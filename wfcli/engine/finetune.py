"""`wfcli finetune`: some steps of distillation from the teachers' ensemble plus cross entropy, from any start."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wfcli.core.architectures import Architecture, Layout, build_model, input_config, match_layout
from wfcli.core.checkpoint import Checkpoint, check_writable, open_checkpoint, write_checkpoint
from wfcli.core.data import DataSpec, load_images
from wfcli.core.devices import pick_device
from wfcli.core.downloads import check_downloads
from wfcli.core.sources import Source, resolve_source
from wfcli.core.training import Optimiser, repeatable, usual_optimiser
from wfcli.engine.classes import Head, check_data, head_of
from wfcli.engine.distillation import Distillation, beside
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.labels import take_labels
from wfcli.engine.provenance import data_record, made_by
from wfcli.engine.student import cast
from wfcli.engine.teachers import Teachers, check_not_overwritten, open_teachers, source_record
from wfcli.errors import Problems, WfError

# What is taken where the options leave it open: peak learning rate and weight decay of each optimiser.
USUAL: dict[Optimiser, tuple[float, float]] = {"sgd": (0.01, 5e-4), "adamw": (3e-4, 0.05)}
RECIPE = (
    "steps",
    "optimiser",
    "lr",
    "batch_size",
    "distill_weight",
    "ce_weight",
    "temperature",
    "warmup",
    "weight_decay",
    "validate_every",
)
HINTS = ("lower --lr", "start from the same weights in a file of float32")  # where the student is not finite


@dataclass(frozen=True)
class FinetuneConfig:
    """What to start from, whom to learn from, and how. `teachers` may be empty only where `distill_weight` is 0."""

    checkpoint: str
    teachers: tuple[str, ...]
    architecture: Architecture
    data: DataSpec
    steps: int
    output: Path
    optimiser: Optimiser | None = None  # None: as nets of this kind are trained; the next two: as usual for it
    lr: float | None = None
    batch_size: int = 256
    distill_weight: float = 1.0
    ce_weight: float = 0.5
    temperature: float = 1.0
    warmup: float = 0.05
    weight_decay: float | None = None
    validate_every: int = 0
    seed: int = 0
    device: str = "auto"
    resume: bool = False


@dataclass(frozen=True)
class FinetuneResult:
    """The written student is that of `best_step` (0: the start); `validation` holds (step, top-1 0..1)."""

    output: Path
    digest: str
    steps: int
    best_step: int
    validation: tuple[tuple[int, float], ...]
    images_seen: int
    seconds: float


def finetune(config: FinetuneConfig, hooks: Hooks | None = None) -> FinetuneResult:
    """Train a student on the teachers' mean probabilities and the labels; write its best checkpoint, by validation.

    The student keeps the key layout and the dtypes of its file. Beside OUT there are OUT.log.jsonl (one JSON object a
    line) and, while the run goes on, OUT.resume: with `resume` it continues there, to the same bytes as without the
    interruption.

    Raises:
        WfError: options out of range; a loss that is no longer finite; a run to resume that had other options; one that
            could be resumed, without `resume`.
        SourceError, CheckpointError, ArchitectureError: checkpoints that are not there, damaged or do not fit.
        DataError: the data is not there, or has other classes than the head.
        OutputError: the output cannot be written.
    """
    hooks = hooks or Silent()
    problems = Problems()
    with problems:
        config = settled(config)
        _check(config)
    with problems:
        check_writable(config.output)
    with problems:
        pick_device(config.device)
    opened = _open(config, problems, hooks)
    device = pick_device(config.device)
    inputs = input_config(config.architecture)
    images = load_images(config.data, "train", inputs.size)
    validation = load_images(config.data, "validation", inputs.size)
    provenance = _provenance(config, opened, images.class_names)
    with repeatable(device):
        student, ensemble = _load(config, opened, device)
        state = Distillation(config, student, ensemble, images, validation, device, hooks).go(provenance)
    digest = _write_student(config.output, opened, state.best, {**provenance, "best_step": state.best_step})
    beside(config.output, ".resume").unlink(missing_ok=True)
    return FinetuneResult(
        output=config.output,
        digest=digest,
        steps=config.steps,
        best_step=state.best_step,
        validation=tuple(state.validation),
        images_seen=state.images_seen,
        seconds=state.seconds,
    )


def settled(config: FinetuneConfig) -> FinetuneConfig:
    """Fill in what the options leave to the kind of net: optimiser, learning rate, weight decay."""
    if config.optimiser not in (None, *USUAL):
        raise WfError(
            f"--optimiser: got {config.optimiser}, expected one of {', '.join(USUAL)}", hint="or leave it out"
        )
    kind = config.optimiser or usual_optimiser(build_model(config.architecture, 2, device="meta"))
    lr, weight_decay = USUAL[kind]
    return replace(
        config,
        optimiser=kind,
        lr=lr if config.lr is None else config.lr,
        weight_decay=weight_decay if config.weight_decay is None else config.weight_decay,
    )


def _check(config: FinetuneConfig) -> None:
    assert config.lr is not None  # settled
    assert config.weight_decay is not None
    wanted = (
        ("steps", config.steps, "at least 0", config.steps >= 0),
        ("lr", config.lr, "more than 0 and finite", 0 < config.lr < math.inf),
        ("batch-size", config.batch_size, "at least 2", config.batch_size >= 2),
        ("distill-weight", config.distill_weight, "at least 0 and finite", 0 <= config.distill_weight < math.inf),
        ("ce-weight", config.ce_weight, "at least 0 and finite", 0 <= config.ce_weight < math.inf),
        ("temperature", config.temperature, "more than 0 and finite", 0 < config.temperature < math.inf),
        ("warmup", config.warmup, "0 to 1", 0 <= config.warmup <= 1),
        ("weight-decay", config.weight_decay, "at least 0 and finite", 0 <= config.weight_decay < math.inf),
        ("validate-every", config.validate_every, "at least 0", config.validate_every >= 0),
        ("seed", config.seed, "at least 0", config.seed >= 0),
    )
    problems = [f"--{name}: got {value}, expected {range_}" for name, value, range_, fine in wanted if not fine]
    if config.ce_weight == 0 and config.distill_weight == 0:
        problems.append("--ce-weight and --distill-weight are both 0: nothing to learn")
    if not config.teachers and config.distill_weight:
        problems.append("no teachers to distil from; name them with --teachers, or set --distill-weight 0")
    if problems:
        raise WfError(*problems, hint="see wfcli finetune --help")


@dataclass(frozen=True)
class _Opened:
    """The checkpoints of a run, found to belong together."""

    source: Source
    start: Checkpoint
    layout: Layout
    teachers: Teachers | None


def _open(config: FinetuneConfig, problems: Problems, hooks: Hooks) -> _Opened:
    """Open the start and the teachers and check them with the data, from headers; raise all `problems` at once."""
    start = layout = teachers = None
    heads: list[Head] = []
    with problems:
        source = resolve_source(config.checkpoint)
        start = open_checkpoint(source.path, source.name)
        layout = match_layout(config.architecture, start.specs, start.name)
        take_labels(source, start, layout.num_classes)
        heads.append(head_of(start, layout.num_classes))
    with problems:
        teachers = open_teachers(config.teachers, config.architecture, minimum=1) if config.teachers else None
        heads += [head_of(teacher, teachers.num_classes) for teacher in teachers.checkpoints] if teachers else []
    with problems:
        check_data(config.data, ("train", "validation"), heads, hooks)
    problems.raise_all()
    assert start is not None
    assert layout is not None
    check_not_overwritten(config.output, [start, *(teachers.checkpoints if teachers else ())])
    check_downloads([start])  # the teachers were compared when they were opened
    return _Opened(source, start, layout, teachers)


def _load(config: FinetuneConfig, opened: _Opened, device: torch.device) -> tuple[nn.Module, list[nn.Module]]:
    """Build the student and the teachers it learns from (in eval mode), in float32.

    Raises:
        CheckpointError: weights that are not finite, of all the files.
    """
    torch.manual_seed(config.seed)
    blank = build_model(config.architecture, opened.layout.num_classes)
    student = _loaded(blank, start := Finite(opened.start), opened.layout, device)
    ensemble, files = [], [start]
    if opened.teachers is not None and config.distill_weight:
        files += [Finite(teacher) for teacher in opened.teachers.checkpoints]
        ensemble = [_loaded(blank, file, opened.teachers.layout, device).eval() for file in files[1:]]
    raise_nonfinite(files)
    return student, ensemble


def _loaded(blank: nn.Module, file: Finite, layout: Layout, device: torch.device) -> nn.Module:
    model = copy.deepcopy(blank)
    model.load_state_dict({**model.state_dict(), **layout.timm_view(file)})  # a file may lack BatchNorm's counters
    return model.to(memory_format=torch.channels_last).to(device)


def _write_student(output: Path, opened: _Opened, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> str:
    """Write the student in the keys, shapes and dtypes of the file it started from; return its digest."""
    specs = opened.start.specs
    stored = opened.layout.file_state(state)
    tensors = ((key, stored[key]) for key in specs)
    return write_checkpoint(output, specs, cast(tensors, specs, (), HINTS), provenance)


def _provenance(config: FinetuneConfig, opened: _Opened, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        **made_by("finetune", config.architecture, config.seed),
        "sources": [source_record(opened.source, opened.start)],
        "teachers": [] if opened.teachers is None else opened.teachers.provenance(),
        "data": data_record(config.data),
        "classes": list(class_names),
        "recipe": {name: getattr(config, name) for name in RECIPE},
    }
