"""Compare checkpoints with their teachers, the ensemble and the soups on real images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from wfcli.core.architectures import Architecture, Layout, build_model, input_config, match_layout
from wfcli.core.calibrate import has_batchnorm
from wfcli.core.checkpoint import Checkpoint, open_checkpoint
from wfcli.core.data import DataSpec, available_splits, load_images
from wfcli.core.devices import pick_device
from wfcli.core.downloads import check_downloads
from wfcli.core.metrics import Scores, score
from wfcli.core.sources import resolve_sources
from wfcli.engine.classes import Head, check_data, head_of
from wfcli.engine.doubts import doubt_answers
from wfcli.engine.expanded_glob import refuse_expanded_glob
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.labels import take_labels
from wfcli.engine.lineup import (
    Bench,
    Entry,
    Kind,
    ask,
    calibrated_entry,
    load_entries,
    soup_entry,
)
from wfcli.engine.pictures import Net, take_pictures
from wfcli.engine.rows import Comparison, Row, row_of, with_baselines
from wfcli.engine.teachers import Teachers, open_teachers
from wfcli.errors import CheckpointError, Problems, WfError

__all__ = ["Comparison", "EvaluateConfig", "Row", "Student", "compare", "evaluate"]


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
    pictures: bool = False  # measure also what the pictures of a report show


@dataclass(frozen=True)
class Student:
    """A checkpoint to compare; its weights are read when they are needed."""

    file: Checkpoint
    layout: Layout


def evaluate(config: EvaluateConfig, hooks: Hooks | None = None) -> Comparison:
    """Compare the checkpoints on one split; with teachers, also those, their mean, best, ensemble and soups.

    What headers can tell is checked before an image is decoded.

    Raises:
        SourceError, CheckpointError, ArchitectureError: files that are missing, broken or do not fit.
        DataError: the dataset is missing, or has other classes than the heads.
    """
    hooks = hooks or Silent()
    refuse_expanded_glob(config.checkpoints, config.teachers)
    problems = Problems()
    with problems:
        _check_options(config)
    with problems:
        pick_device(config.device)
    teachers, students, heads = _open(config, problems)
    with problems:
        check_data(config.data, [config.split], heads, hooks)
    problems.raise_all()
    check_downloads([student.file for student in students])
    return compare(students, teachers, config, hooks)


def compare(
    students: Sequence[Student],
    teachers: Teachers | None,
    config: EvaluateConfig,
    hooks: Hooks | None = None,
    framed: Sequence[Mapping[str, Tensor]] | None = None,
) -> Comparison:
    """Measure teachers, their mean, best, ensemble and soups, and the students, in one pass over the split.

    The heads have the classes of the data (`check_data`). `framed`: the teachers (file's names) in the frame in which
    the students were made, where that is another than their own; lines are drawn there.

    Raises:
        CheckpointError: weights that are not finite, of all the files.
        DataError: the dataset lacks the split, or its images cannot be read.
    """
    settings = input_config(config.architecture)
    bench = Bench(settings, pick_device(config.device), config.batch_size, hooks or Silent())
    blank = build_model(config.architecture, (teachers or students[0]).layout.num_classes)
    known = [(Finite(checkpoint), teachers.layout) for checkpoint in teachers.checkpoints] if teachers else []
    given = [(Finite(student.file), student.layout) for student in students]
    entries = load_entries(bench, blank, "teacher", known)
    asked = load_entries(bench, blank, "checkpoint", given)
    raise_nonfinite([file for file, _ in known + given])
    images = load_images(config.data, config.split, settings.size)
    if teachers is not None:
        entries += _soups(bench, teachers, blank, config)
    entries += asked
    models = [entry.model for entry in entries]
    count = len(teachers.checkpoints) if teachers is not None else 0
    answers = ask(bench, models, images, stage="evaluating", teachers=count)
    rows = [row_of(bench, answers, place, entry) for place, entry in enumerate(entries)]
    own = [place for place, entry in enumerate(entries) if entry.kind in ("teacher", "checkpoint")]
    doubt_answers(bench, [entries[place] for place in own], [answers.log_probs[place] for place in own], images)
    best, chosen_on = None, None
    order: list[int] = []
    if count:
        order, chosen_on = _rank_teachers(bench, models[:count], rows[:count], config)
        chosen = rows[order[0]]
        rows = with_baselines(bench, answers, rows, count, chosen, chosen_on == config.split)
        best = chosen.name
    pictures = None
    if config.pictures:
        states = framed or [file for file, _ in known]
        nets = [_net("teacher", *one, state) for one, state in zip(known, states, strict=True)]
        made = [_net("checkpoint", *one, one[0]) for one in given]
        ends = [*(nets[place] for place in order[:2]), *made[:1]]
        pictures = take_pictures(bench, blank, config, entries, answers, [*nets, *made], ends, framed is not None)
    what = config.data.source + (f" (classes {config.data.classes})" if config.data.classes else "")
    return Comparison(
        tuple(rows), config.architecture.label, what, config.split, len(images), best, chosen_on, pictures
    )


def _net(kind: Kind, file: Finite, layout: Layout, state: Mapping[str, Tensor]) -> Net:
    return Net(file.checkpoint.name, kind, layout.timm_view(state), file.checkpoint)


def _check_options(config: EvaluateConfig) -> None:
    problems = []
    if not config.checkpoints and not config.teachers:
        problems.append("nothing to compare: neither checkpoints nor teachers")
    if config.batch_size < 1:
        problems.append(f"--batch-size: got {config.batch_size}, expected at least 1")
    if config.calibration_images < 0:
        problems.append(f"--calibration-images: got {config.calibration_images}, expected at least 0")
    if problems:
        raise WfError(*problems, hint="see wfcli eval --help")


def _open(config: EvaluateConfig, problems: Problems) -> tuple[Teachers | None, list[Student], list[Head]]:
    """Open and check teachers and checkpoints; also return the heads of those that could be opened."""
    teachers, heads = None, []
    if config.teachers:
        with problems:
            teachers = open_teachers(config.teachers, config.architecture)
            heads = [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints]
    students = []
    paths: set[Path] = set()
    for source in resolve_sources(config.checkpoints, "checkpoint", problems):
        with problems:
            if source.path.resolve() in paths:
                raise CheckpointError(f"{source.name}: the same file twice", hint="give every checkpoint once")
            paths.add(source.path.resolve())
            file = open_checkpoint(source.path, source.name)
            layout = match_layout(config.architecture, file.specs, file.name)
            take_labels(source, file, layout.num_classes)
            students.append(Student(file, layout))
            heads.append(head_of(file, layout.num_classes))
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


def _rank_teachers(
    bench: Bench, models: Sequence[nn.Module], rows: Sequence[Row], config: EvaluateConfig
) -> tuple[list[int], str]:
    """Return the places of the teachers by top-1 on the validation split, best first, and the name of that split.

    Equal ones are told apart by NLL: the order of the teachers does not matter. Without a validation split the choice
    is made on the split that is evaluated.
    """
    if config.split == "validation" or "validation" not in available_splits(config.data):
        ranks, split = [_rank(row) for row in rows], config.split
    else:
        images = load_images(config.data, "validation", bench.settings.size)
        answers = ask(bench, models, images, stage="choosing the best teacher")
        ranks, split = [_rank(score(log_probs, answers.labels)) for log_probs in answers.log_probs], "validation"
    return sorted(range(len(rows)), key=ranks.__getitem__, reverse=True), split


def _rank(found: Row | Scores) -> tuple[float, float]:
    return found.top1, -math.inf if math.isnan(found.nll) else -found.nll
