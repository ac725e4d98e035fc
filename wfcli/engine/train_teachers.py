"""`wfcli train-teachers`: a zoo of teachers, each with its own recipe and its own share of the images."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config, match_layout
from wfcli.core.checkpoint import Checkpoint, open_checkpoint, write_json
from wfcli.core.data import DataSpec, load_images, load_labels
from wfcli.core.devices import pick_device
from wfcli.core.downloads import check_downloads
from wfcli.core.faults import parse_faults
from wfcli.core.outputs import check_folder, make_folder
from wfcli.core.shares import SHARE_KINDS, Cap, class_counts, share_images
from wfcli.core.sources import Source, resolve_source
from wfcli.core.training import Optimiser, usual_optimiser
from wfcli.core.zoo import FILE, Zoo, ZooTeacher, zoo_to_json
from wfcli.engine.classes import check_data
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.labels import take_labels
from wfcli.engine.provenance import class_names as class_names_of
from wfcli.engine.provenance import data_record, made_by
from wfcli.engine.recipes import USUAL_LR, Recipe, draw_recipe
from wfcli.engine.teacher_jobs import TeacherJob, make_teachers
from wfcli.engine.teachers import check_not_overwritten, source_record
from wfcli.errors import CheckpointError, OutputError, Problems, WfError

VERB = "train-teachers"  # in the record of every teacher
# What zoo.json says of the options that decide about the bytes; it has the others elsewhere.
OPTIONS = ("epochs", "same_recipe", "faults", "optimiser", "lr", "batch_size")


@dataclass(frozen=True)
class TrainTeachersConfig:
    """What the zoo is made of. `init` is the source of a checkpoint; without it each teacher starts at random."""

    architecture: Architecture
    data: DataSpec
    count: int
    output: Path
    init: str | None = None
    epochs: float = 10.0
    seed: int = 0
    shares: str = "same"
    concentration: float = 0.3
    images_per_teacher: Cap = None
    same_recipe: bool = False
    optimiser: Optimiser | None = None  # None: AdamW for a net with layer norms, else SGD
    lr: float | None = None  # None: what is usual for the optimiser
    batch_size: int = 128
    faults: str = "none"  # of the teachers, in turn: "none,none,labels"
    jobs: int = 1  # teachers made at a time
    device: str = "auto"


@dataclass(frozen=True)
class TrainTeachersResult:
    """The folder, what `zoo.json` in it says, and how long it took."""

    folder: Path
    zoo: Mapping[str, Any]
    seconds: float


def train_teachers(config: TrainTeachersConfig, hooks: Hooks | None = None) -> TrainTeachersResult:
    """Train the teachers, `config.jobs` at a time, and write `config.output` with its `zoo.json`.

    The same config gives the same bytes. Resumable: a teacher that is there already and was made in the same way is
    kept. The files are in timm's layout. With `init` the base's head is kept if it is for the same classes; else it is
    drawn anew, the same for all teachers.

    Raises:
        WfError: options out of range; a loss that is no longer finite.
        SourceError, CheckpointError, ArchitectureError: `init` leads nowhere, is damaged or does not fit.
        DataError: the data is not there, or the shares do not come about.
        OutputError: the folder cannot be written, or holds checkpoints that would not belong to this zoo.
    """
    hooks = hooks or Silent()
    began = time.monotonic()
    plan = plan_zoo(config, hooks)
    made = make_teachers(plan.jobs, config.jobs, config.device, hooks)
    return write_zoo(plan, made, time.monotonic() - began)


@dataclass(frozen=True)
class ZooPlan:
    """A zoo whose teachers are still to be made."""

    config: TrainTeachersConfig
    jobs: tuple[TeacherJob, ...]
    shares: tuple[tuple[int, ...] | None, ...]  # image numbers of each teacher; None: all
    class_counts: tuple[tuple[int, ...], ...]
    base: Mapping[str, str] | None  # name, sha256 and, from the Hub, the commit


def plan_zoo(config: TrainTeachersConfig, hooks: Hooks) -> ZooPlan:
    """Check the options, load the images, deal them out and make the folder. Raises as `train_teachers`."""
    source = base = None
    problems = Problems()
    with problems:
        check_options(config)
    with problems:
        pick_device(config.device)
    with problems:
        check_place(config)
    with problems:
        source, base = (None, None) if config.init is None else _open_base(config)
        for path in _paths(config):
            check_not_overwritten(path, [base] if base else [])
    with problems:
        check_data(config.data, ("teachers", "validation"), (), hooks)
    problems.raise_all()
    check_downloads([base] if base else [])
    size = input_config(config.architecture).size
    images = load_images(config.data, "teachers", size)
    validation = load_images(config.data, "validation", size)
    labels = images.labels.tolist()
    shares = _deal(config, labels)
    start = None if base is None else _start_from(base, config, images.class_names)
    named = None if source is None or base is None else source_record(source, base)
    optimiser = config.optimiser or usual_optimiser(build_model(config.architecture, 2, device="meta"))
    lr = USUAL_LR[optimiser] if config.lr is None else config.lr
    config = replace(config, optimiser=optimiser, lr=lr)  # zoo.json has what was taken
    faults = parse_faults(config.faults)
    make_folder(config.output)
    jobs = []
    for index, (path, share) in enumerate(zip(_paths(config), shares, strict=True)):
        fault = faults[index % len(faults)]
        recipe = draw_recipe(config.seed, index, lr, config.epochs, config.same_recipe, images.flip, optimiser, fault)
        jobs.append(
            TeacherJob(
                path=path,
                stage=f"{path.stem} of {config.count}",
                architecture=config.architecture,
                recipe=recipe,
                batch_size=config.batch_size,
                images=images if share is None else images.subset(torch.tensor(share)),
                validation=validation,
                start=start,
                seed=_start_seed(config.seed, index),
                provenance=_provenance(config, index, recipe, share, named, images.class_names),
            )
        )
    counts = tuple(class_counts(labels, share, len(images.class_names)) for share in shares)
    return ZooPlan(config, tuple(jobs), tuple(shares), counts, named)


def _start_seed(seed: int, index: int) -> int:
    """Return the seed of a teacher's random start, one that no teacher of a zoo with another seed has.

    With seed 0 it is the number of the teacher: results from before a zoo had starts of its own stay what they were.
    """
    return ((seed << 16) + index) % 2**64  # as wide as torch takes


def write_zoo(plan: ZooPlan, made: Sequence[tuple[str, float]], seconds: float) -> TrainTeachersResult:
    """Write `zoo.json` beside the teachers, of which `made` has sha256 and accuracy (0..1)."""
    config = plan.config
    zoo = Zoo(
        folder=config.output,
        architecture=config.architecture,
        data=config.data,
        class_names=plan.jobs[0].images.class_names,
        base=plan.base,
        shares=_shares(config),
        teachers=tuple(
            ZooTeacher(job.path.name, digest, share, counts, job.recipe.record(), top1, job.seed)
            for job, (digest, top1), share, counts in zip(plan.jobs, made, plan.shares, plan.class_counts, strict=True)
        ),
        options={name: getattr(config, name) for name in OPTIONS},
    )
    written = zoo_to_json(zoo)
    write_json(config.output / FILE, written)
    return TrainTeachersResult(config.output, written, seconds)


def check_options(config: TrainTeachersConfig, where: str = "") -> None:
    """Check what no type tells.

    Raises:
        WfError: options out of range, all of them; `where` says whose.
    """
    lr, kind, optimiser = config.lr, config.shares, config.optimiser
    problems = [
        f"{where}{': ' if where else ''}--{name}: got {value}, expected {wanted}"
        for name, value, wanted, fine in (
            ("count", config.count, "at least 1", config.count >= 1),
            ("epochs", config.epochs, "more than 0 and finite", 0 < config.epochs < math.inf),
            ("lr", lr, "more than 0 and finite", lr is None or 0 < lr < math.inf),
            ("batch-size", config.batch_size, "at least 2", config.batch_size >= 2),
            ("shares", kind, f"one of {', '.join(SHARE_KINDS)}", kind in SHARE_KINDS),
            ("concentration", config.concentration, "more than 0 and finite", 0 < config.concentration < math.inf),
            ("optimiser", optimiser, f"one of {', '.join(USUAL_LR)}", optimiser is None or optimiser in USUAL_LR),
            ("jobs", config.jobs, "at least 1", config.jobs >= 1),
            ("seed", config.seed, "at least 0", config.seed >= 0),
        )
        if not fine
    ]
    try:
        parse_faults(config.faults)
    except WfError as error:
        problems += [f"{where}{': ' if where else ''}{problem}" for problem in error.problems]
    if problems:
        raise WfError(*problems, hint="see wfcli train-teachers --help")


def check_shares(config: TrainTeachersConfig) -> None:
    """Make sure that the data has the images, and that each teacher gets its share, without decoding an image.

    Raises:
        DataError: the data lacks a split, a class or its images, or the shares do not come about.
    """
    problems = Problems()
    with problems:
        load_labels(config.data, "validation")
    with problems:
        _deal(config, load_labels(config.data, "teachers"))
    problems.raise_all()


def _deal(config: TrainTeachersConfig, labels: Sequence[int]) -> list[tuple[int, ...] | None]:
    return share_images(
        config.shares,
        labels,
        config.count,
        concentration=config.concentration,
        images_per_teacher=config.images_per_teacher,
        seed=config.seed,
    )


def check_place(config: TrainTeachersConfig) -> None:
    """Make sure that the folder can be written, and that nothing in it is lost or taken for a teacher of this zoo.

    Teachers that an earlier `train-teachers` left in their places may be replaced.

    Raises:
        OutputError: so it is not; names the files.
    """
    check_folder(config.output)
    own = _paths(config)
    foreign = [path.name for path in sorted(config.output.glob("*.safetensors")) if path not in own]
    problems = [f"{config.output}: {name} is there already and would not be a teacher of this zoo" for name in foreign]
    problems += [f"{path}: is there already and {what}" for path in own if (what := _not_ours(path))]
    if problems:
        raise OutputError(*problems, hint="choose another -o, or remove these files")


def _not_ours(path: Path) -> str | None:
    """Say why a file in the place of a teacher is not one that may be replaced; a damaged one is made again."""
    if not path.exists():
        return None
    if not path.is_file():
        return "is not a plain file"
    try:
        made = open_checkpoint(path).provenance or {}
    except CheckpointError:
        return None
    if made.get("verb") == VERB:
        return None
    return f"is not from {VERB} ({'made by ' + str(made['verb']) if 'verb' in made else 'no provenance'})"


def _paths(config: TrainTeachersConfig) -> list[Path]:
    return [config.output / f"teacher-{index:02d}.safetensors" for index in range(config.count)]


def _open_base(config: TrainTeachersConfig) -> tuple[Source, Checkpoint]:
    assert config.init is not None
    source = resolve_source(config.init)
    base = open_checkpoint(source.path, source.name)
    layout = match_layout(config.architecture, base.specs, base.name)
    take_labels(source, base, layout.num_classes)
    return source, base


def _start_from(base: Checkpoint, config: TrainTeachersConfig, class_names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the base's weights in timm's keys, with a head for these classes: its own or one drawn from the seed."""
    layout = match_layout(config.architecture, base.specs, base.name)
    checked = Finite(base)
    state = dict(layout.timm_view(checked))
    raise_nonfinite([checked])
    if layout.num_classes != len(class_names) or class_names_of(base) not in (None, class_names):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            fresh = build_model(config.architecture, len(class_names)).state_dict()
        state.update({key: fresh[key] for key in head_keys(config.architecture) if key in fresh})
    return state


def _shares(config: TrainTeachersConfig) -> dict[str, Any]:
    return {
        "kind": config.shares,
        "concentration": config.concentration if config.shares == "dirichlet" else None,
        "images_per_teacher": config.images_per_teacher,
        "seed": config.seed,
    }


def _provenance(
    config: TrainTeachersConfig,
    index: int,
    recipe: Recipe,
    share: tuple[int, ...] | None,
    base: Mapping[str, str] | None,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    seen = json.dumps("all" if share is None else share)
    return {
        **made_by(VERB, config.architecture, config.seed),
        "sources": [] if base is None else [base],
        "teacher": index,
        "data": data_record(config.data),
        "classes": list(class_names),
        "share": {**_shares(config), "images": "all" if share is None else len(share), "sha256": _sha256(seen)},
        "recipe": {**recipe.record(), "batch_size": config.batch_size},
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
