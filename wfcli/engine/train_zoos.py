"""`wfcli train-teachers --zoo-recipe`: many zoos from one base, all of their teachers made in one go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wfcli.core.data import DataSpec
from wfcli.core.shares import parse_cap
from wfcli.core.zoo_recipes import PlannedZoo, ZooRecipe, read_zoo_recipe
from wfcli.engine.classes import check_data
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.teacher_jobs import make_teachers
from wfcli.engine.train_teachers import (
    TrainTeachersConfig,
    check_options,
    check_place,
    check_shares,
    plan_zoo,
    train_teachers,
    write_zoo,
)
from wfcli.errors import DataError, Problems


@dataclass(frozen=True)
class TrainZoosConfig:
    """The recipe, and what a command line may say otherwise. `data` replaces the recipe's."""

    recipe: Path
    output: Path
    data: str | None = None
    jobs: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class TrainZoosResult:
    """Folder -> what its `zoo.json` says, the base's (if it was trained) first."""

    folder: Path
    zoos: Mapping[str, Mapping[str, Any]]
    seconds: float


def train_zoos(config: TrainZoosConfig, hooks: Hooks | None = None) -> TrainZoosResult:
    """Make all zoos of a recipe, each in a folder of its own in `config.output`.

    Resumable as `train_teachers` is: teachers that are there already are kept.

    Raises:
        SourceError, DataError, ArchitectureError: the recipe is not there or has faults; all of them are named.
        WfError, CheckpointError, OutputError: as `train_teachers`.
    """
    hooks = hooks or Silent()
    began = time.monotonic()
    recipe = read_zoo_recipe(config.recipe)
    source = config.data or recipe.data
    if source is None:
        raise DataError(f"{config.recipe}: names no data", hint="add data = ... to it, or give --data")
    planned = [*([recipe.base] if recipe.base else []), *recipe.zoos]
    problems = Problems()
    options: dict[str, TrainTeachersConfig] = {}
    for zoo in planned:
        with problems:
            options[zoo.name] = _options(config, recipe, zoo, source)
    _check_all(options, DataSpec(source, recipe.label_column), problems, hooks)
    problems.raise_all()
    base = None
    if recipe.base is not None:
        base = train_teachers(options.pop(recipe.base.name), hooks)
    plans = []
    for number, name in enumerate(options):
        hooks.progress("reading images", number, len(options))
        plans.append(plan_zoo(options[name], hooks))
    jobs = [job for plan in plans for job in plan.jobs]
    made = iter(make_teachers(jobs, config.jobs, config.device, hooks))
    written = {} if base is None or recipe.base is None else {recipe.base.name: base.zoo}
    for name, plan in zip(options, plans, strict=True):
        written[name] = write_zoo(plan, list(islice(made, len(plan.jobs))), 0.0).zoo
    return TrainZoosResult(config.output, written, time.monotonic() - began)


def _check_all(options: Mapping[str, TrainTeachersConfig], data: DataSpec, problems: Problems, hooks: Hooks) -> None:
    """Check the places, the data and the shares of all zoos, before the first teacher is trained."""
    for zoo in options.values():
        with problems:
            check_place(zoo)
    with problems:
        check_data(data, ("teachers", "validation"), (), hooks)  # what is wrong with it is wrong for all zoos
        for name, zoo in options.items():
            with problems, _named(name):
                check_shares(zoo)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say whose problems they are."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{name}: {problem}" for problem in error.problems), hint=error.hint) from error


def _options(config: TrainZoosConfig, recipe: ZooRecipe, zoo: PlannedZoo, source: str) -> TrainTeachersConfig:
    own = dict(zoo.options)
    if "images_per_teacher" in own:
        with _named(zoo.name):
            own["images_per_teacher"] = parse_cap(str(own["images_per_teacher"]))
    init = recipe.init
    if recipe.base is not None:
        init = None if zoo is recipe.base else str(config.output / recipe.base.name / "teacher-00.safetensors")
    options = TrainTeachersConfig(
        architecture=recipe.architecture,
        data=DataSpec(source, recipe.label_column, zoo.classes),
        output=config.output / zoo.name,
        init=init,
        jobs=config.jobs,
        device=config.device,
        **own,
    )
    check_options(options, zoo.name)
    return options
