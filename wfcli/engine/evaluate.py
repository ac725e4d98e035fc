"""Compare checkpoints with their teachers, the ensemble and the soups on real images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wfcli.core.architectures import Architecture, build_model, input_config, match_layout
from wfcli.core.calibrate import has_batchnorm
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec, available_splits, load_images
from wfcli.core.devices import pick_device
from wfcli.core.metrics import Scores, score
from wfcli.core.sources import try_sources
from wfcli.engine.classes import Head, check_classes, head_of
from wfcli.engine.expanded_glob import refuse_expanded_glob
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.lineup import (
    Bench,
    Entry,
    ask,
    calibrated_entry,
    load_model,
    soup_entry,
    teacher_entries,
)
from wfcli.engine.rows import Comparison, Row, row_of, with_baselines
from wfcli.engine.teachers import Teachers, gather, open_teachers
from wfcli.errors import ArchitectureError, CheckpointError, WfError

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig

__all__ = ["Comparison", "EvaluateConfig", "Row", "Student", "compare", "compare_fused", "evaluate"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `wfcli eval`."""

    checkpoints: tuple[str, ...]
    teachers: tuple[str, ...]
    architecture: Architecture
    data: DataSpec
    split: str = "test"
    batch_size: int = 500
    calibration_images: int = 4096  # of the training split, for the calibrated soup; 0: leave it out
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Student:
    """A network to compare: its weights by timm's names, read when asked for; `size` in bytes."""

    name: str
    state: Mapping[str, Tensor]
    size: int


def evaluate(config: EvaluateConfig, hooks: Hooks | None = None) -> Comparison:
    """Compare the checkpoints on one split; with teachers, also those, their mean, best, ensemble and soups.

    What headers can tell is checked before an image is decoded.

    Raises:
        SourceError, CheckpointError, ArchitectureError: files that are missing, broken or do not fit.
        DataError: the dataset is missing, or has other classes than the heads.
    """
    hooks = hooks or Silent()
    _check_options(config)
    refuse_expanded_glob(config.checkpoints, config.teachers)
    teachers, students, heads = _open(config)
    check_classes(config.data, heads, hooks)
    return compare(students, teachers, config, hooks)


def compare_fused(config: FuseConfig, teachers: Teachers, hooks: Hooks) -> Comparison:
    """Compare the student that `fuse` has written with the teachers it was made from."""
    assert config.data is not None
    file = open_checkpoint(config.output)
    layout = match_layout(config.architecture, file.specs, file.name)
    options = EvaluateConfig(
        checkpoints=(str(config.output),),
        teachers=config.teachers,
        architecture=config.architecture,
        data=config.data,
        split=config.split,
        calibration_images=config.calibration_images,
        seed=config.seed,
        device=config.device,
    )
    return compare([Student(file.name, layout.timm_view(file), file.size)], teachers, options, hooks)


def compare(
    students: Sequence[Student], teachers: Teachers | None, config: EvaluateConfig, hooks: Hooks | None = None
) -> Comparison:
    """Measure teachers, their mean, best, ensemble and soups, and the students, in one pass over the split.

    The heads have the classes of the data (`check_classes`).

    Raises:
        DataError: the dataset lacks the split, or its images cannot be read.
    """
    settings = input_config(config.architecture)
    bench = Bench(settings, pick_device(config.device), config.batch_size, hooks or Silent())
    images = load_images(config.data, config.split, settings.size)
    blank = build_model(config.architecture, len(images.class_names))
    entries: list[Entry] = []
    if teachers is not None:
        entries += teacher_entries(bench, teachers, blank)
        entries += _soups(bench, teachers, blank, config)
    entries += [Entry(s.name, "checkpoint", load_model(blank, s.state, bench.device), s.size) for s in students]
    models = [entry.model for entry in entries]
    count = len(teachers.checkpoints) if teachers is not None else 0
    answers = ask(bench, models, images, stage="evaluating", teachers=count)
    rows = [row_of(bench, answers, place, entry) for place, entry in enumerate(entries)]
    best, chosen_on = None, None
    if count:
        chosen, chosen_on = _choose_best(bench, models[:count], rows[:count], config)
        rows = with_baselines(bench, answers, rows, count, chosen, chosen_on == config.split)
        best = chosen.name
    what = config.data.source + (f" (classes {config.data.classes})" if config.data.classes else "")
    return Comparison(tuple(rows), config.architecture.label, what, config.split, len(images), best, chosen_on)


def _check_options(config: EvaluateConfig) -> None:
    pick_device(config.device)
    problems = []
    if config.batch_size < 1:
        problems.append(f"batch size: got {config.batch_size}, expected at least 1")
    if config.calibration_images < 0:
        problems.append(f"calibration images: got {config.calibration_images}, expected at least 0")
    if problems:
        raise WfError(*problems)


def _open(config: EvaluateConfig) -> tuple[Teachers | None, list[Student], list[Head]]:
    """Open and check teachers and checkpoints, all problems at once; also return the heads of all."""
    errors: list[WfError] = []
    teachers, heads = None, []
    if config.teachers:
        try:
            teachers = open_teachers(config.teachers, config.architecture)
            heads = [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints]
        except WfError as error:
            errors.append(error)
    sources, missing = try_sources(config.checkpoints, "checkpoint")
    errors += missing
    students = []
    for source in sources:
        try:
            file = open_checkpoint(source.path, source.name)
            layout = match_layout(config.architecture, file.specs, file.name)
        except (CheckpointError, ArchitectureError) as error:
            errors.append(error)
            continue
        students.append(Student(file.name, layout.timm_view(file), file.size))
        heads.append(head_of(file, layout.num_classes))
    if errors:
        raise gather(errors)
    return teachers, students, heads


def _soups(bench: Bench, teachers: Teachers, blank: nn.Module, config: EvaluateConfig) -> list[Entry]:
    """Make the soup and, where there are BatchNorm statistics and training images, the calibrated soup."""
    soup = soup_entry(bench, teachers, blank)
    if config.calibration_images == 0:
        return [soup]
    reason = None
    if not has_batchnorm(blank):
        reason = f"{config.architecture.label} has no BatchNorm"
    elif "train" not in available_splits(config.data):
        reason = f"{config.data.source} has no training split"
    if reason is not None:
        bench.hooks.warn(f"no calibrated soup: {reason}")
        return [soup]
    limit, seed = config.calibration_images, config.seed
    images = load_images(config.data, "train", bench.settings.size, limit=limit, seed=seed)
    return [soup, calibrated_entry(bench, soup, images, seed)]


def _choose_best(
    bench: Bench, models: Sequence[nn.Module], rows: Sequence[Row], config: EvaluateConfig
) -> tuple[Row, str]:
    """Return the row of the teacher with the highest top-1 on the validation split, and the name of that split.

    Equal ones are told apart by NLL: the order of the teachers does not matter. Without a validation split the choice
    is made on the split that is evaluated.
    """
    if config.split == "validation" or "validation" not in available_splits(config.data):
        return max(rows, key=_rank), config.split
    images = load_images(config.data, "validation", bench.settings.size)
    answers = ask(bench, models, images, stage="choosing the best teacher")
    ranks = [_rank(score(log_probs, answers.labels)) for log_probs in answers.log_probs]
    return rows[ranks.index(max(ranks))], "validation"


def _rank(found: Row | Scores) -> tuple[float, float]:
    return found.top1, -math.inf if math.isnan(found.nll) else -found.nll
