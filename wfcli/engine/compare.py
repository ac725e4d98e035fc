"""`wfcli compare`: all methods side by side, for several numbers of teachers and several draws of them.

K teachers of T. Every draw is a contest as in `--method auto`, with all its rules; beside the methods stand the mean
teacher, a copy of the best, the ensemble, what auto would have taken and, if wanted, distillation from several starts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import wfcli
from wfcli.core.architectures import Architecture
from wfcli.core.checkpoint import write_checkpoint
from wfcli.core.data import DataSpec
from wfcli.core.devices import pick_device
from wfcli.core.metrics import score
from wfcli.core.outputs import check_folder, make_folder, scratch_folder, write_json
from wfcli.engine.auto import BEST, Candidate, Judges, contest, open_judges, rank
from wfcli.engine.classes import check_data, head_of
from wfcli.engine.draws import Line, Summary, read_lines, summarise, write_csv
from wfcli.engine.evaluate import Comparison, EvaluateConfig
from wfcli.engine.evaluate import compare as beside
from wfcli.engine.fitting import Loaded, load_named
from wfcli.engine.fuse import ALIGN, FuseConfig, check_candidates
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.lineup import ask, load_model
from wfcli.engine.made import Made
from wfcli.engine.merging import Base, settle
from wfcli.engine.provenance import data_record
from wfcli.engine.situation import Situation, find_situation
from wfcli.engine.teachers import Teachers, open_teachers, source_record
from wfcli.errors import CheckpointError, Problems, WfError

MEAN, ENSEMBLE, AUTO = "mean single", "ensemble", "auto"
STARTS = (BEST, "soup", AUTO)  # of distillation


@dataclass(frozen=True)
class CompareConfig:
    """Options of `wfcli compare`."""

    teachers: tuple[str, ...]
    architecture: Architecture
    data: DataSpec
    output: Path  # a folder
    counts: tuple[int, ...] = ()  # of teachers; none: all of them
    seeds: int = 3  # draws of so many teachers, no set of them twice
    methods: tuple[str, ...] = ()  # none: all that the situation allows
    generator: str | None = None
    base: str | None = None
    align: str = "auto"
    split: str = "test"
    calibration_images: int = 4096
    distill_steps: int = 0
    batch_size: int = 500
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    pictures: bool = False  # compare also the teachers with each other, with what the pictures of a report show


@dataclass(frozen=True)
class CompareResult:
    """All lines, and what they say together."""

    output: Path
    lines: tuple[Line, ...]
    summary: tuple[Summary, ...]
    architecture: str
    data: str
    split: str
    seconds: float
    teachers: Comparison | None = None  # all of them, where pictures were asked for


def compare(config: CompareConfig, hooks: Hooks | None = None) -> CompareResult:
    """Compare the methods; write compare.json, compare.csv and, where matplotlib is there, compare.svg.

    The JSON grows by a draw at a time: with `resume` those that are in it are not made again.

    Raises:
        SourceError, CheckpointError, ArchitectureError, GeneratorError, DataError: what is missing or does not fit.
        WfError: options out of range; another comparison in the folder.
        OutputError: the folder cannot be written.
    """
    hooks = hooks or Silent()
    started = time.perf_counter()
    file = config.output / "compare.json"
    if file.exists() and not config.resume:
        raise WfError(f"{file}: there is a comparison already", hint="--resume goes on with it; or choose another -o")
    teachers, loaded, base = _open(config, hooks)
    found_folder = config.output.exists()
    make_folder(config.output)
    asked = _asked(config, teachers, loaded, base)
    lines = read_lines(file, asked)
    done = {(line.count, line.seed) for line in lines}
    draws = _draws(config, len(teachers.checkpoints), hooks)
    for number, (count, seed, drawn) in enumerate(draws):
        hooks.progress("comparing", number, len(draws))
        if (count, seed) in done:
            continue
        try:
            lines += _draw(config, teachers, loaded, drawn, seed, hooks)
        except BaseException:
            if not found_folder and not any(config.output.iterdir()):  # nothing was found yet: nothing stays
                config.output.rmdir()
            raise
        write_json(file, {**asked, "lines": [asdict(line) for line in lines]})
    hooks.progress("comparing", len(draws), len(draws))
    wanted = {(count, seed) for count, seed, _ in draws}
    shown = [line for line in lines if (line.count, line.seed) in wanted]  # the file keeps those of other runs
    summary = summarise(lines)
    written = {"lines": [asdict(line) for line in lines], "summary": [asdict(one) for one in summary]}
    write_json(file, {**asked, **written})
    write_csv(config.output / "compare.csv", lines)
    return CompareResult(
        output=config.output,
        lines=tuple(shown),
        summary=tuple(summarise(shown)),
        architecture=config.architecture.label,
        data=config.data.source + (f" (classes {config.data.classes})" if config.data.classes else ""),
        split=config.split,
        seconds=time.perf_counter() - started,
        teachers=_teachers(config, teachers, hooks) if config.pictures else None,
    )


def _teachers(config: CompareConfig, teachers: Teachers, hooks: Hooks) -> Comparison:
    """Compare all teachers with each other, their ensemble and their soup, as `wfcli eval` does."""
    options = EvaluateConfig(
        checkpoints=(),
        teachers=config.teachers,
        architecture=config.architecture,
        data=config.data,
        split=config.split,
        batch_size=config.batch_size,
        calibration_images=config.calibration_images,
        seed=config.seed,
        device=config.device,
        pictures=True,
    )
    return beside([], teachers, options, hooks)


def _draws(config: CompareConfig, most: int, hooks: Hooks) -> list[tuple[int, int, list[int]]]:
    """Return number of teachers, number of the draw and which teachers: no set of them twice."""
    found = []
    for count in dict.fromkeys(config.counts or (most,)):
        known: list[list[int]] = []
        draw = np.random.RandomState((1000003 * config.seed + count) % 2**32)
        wanted = min(config.seeds, math.comb(most, count))
        if wanted < config.seeds:
            hooks.warn(f"--seeds {config.seeds}: of {most} teachers there are {wanted} different sets of {count}")
        while len(known) < wanted:
            drawn = sorted(draw.permutation(most)[:count].tolist())
            known += [drawn] if drawn not in known else []
        found += [(count, number, drawn) for number, drawn in enumerate(known)]
    return found


def _open(config: CompareConfig, hooks: Hooks) -> tuple[Teachers, Loaded | None, Base | None]:
    """Open all teachers, generator and base, and check what can be checked before a draw."""
    teachers, loaded, base = None, None, None
    problems = Problems()
    with problems:
        _check_options(config)
    with problems:
        check_folder(config.output)
    with problems:
        pick_device(config.device)
    if config.generator is not None:
        with problems:
            loaded = load_named(config.generator)
    with problems:
        teachers = open_teachers(config.teachers, config.architecture)
        known = [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints]
        check_data(config.data, [config.split, "validation"], known, hooks)
        most = len(teachers.checkpoints)
        if wrong := [count for count in config.counts if not 2 <= count <= most]:
            listed = ", ".join(map(str, wrong))
            raise CheckpointError(f"--counts: got {listed}, expected 2 to {most}", hint=f"there are {most} teachers")
        if config.base is not None:
            some = FuseConfig((), config.architecture, config.output, method="ties", base=config.base)
            base = settle(some, teachers).base
    problems.raise_all()
    assert teachers is not None
    return teachers, loaded, base


def _check_options(config: CompareConfig) -> None:
    check_candidates(config.methods)
    problems = []
    if config.split == "validation":
        problems.append("--split validation: auto chooses on it, it then says nothing else")
    if config.align not in ALIGN:
        problems.append(f"unknown --align {config.align!r}")
    for flag, value, least in (
        ("--seeds", config.seeds, 1),
        ("--distill-steps", config.distill_steps, 0),
        ("--calibration-images", config.calibration_images, 0),
        ("--batch-size", config.batch_size, 1),
    ):
        if value < least:
            problems.append(f"{flag}: got {value}, expected at least {least}")
    if problems:
        raise WfError(*problems, hint="see wfcli compare --help; wfcli methods lists the methods")


def _asked(config: CompareConfig, teachers: Teachers, loaded: Loaded | None, base: Base | None) -> dict[str, Any]:
    """Return what the figures depend on: a comparison that goes on has to have the same."""
    arch = config.architecture
    return {
        "wfcli": wfcli.__version__,  # with which the default generator comes
        "architecture": {"name": arch.name, "args": dict(arch.args)},
        "data": data_record(config.data),
        "split": config.split,
        "teachers": teachers.provenance(),
        "generator": None if loaded is None else {"name": loaded.name, "sha256": loaded.digest},
        "base": None if base is None else source_record(base.source, base.file.checkpoint),
        "methods": list(config.methods),
        "align": config.align,
        "calibration_images": config.calibration_images,
        "distill_steps": config.distill_steps,
        "seed": config.seed,
    }


def _draw(
    config: CompareConfig, teachers: Teachers, loaded: Loaded | None, drawn: Sequence[int], seed: int, hooks: Hooks
) -> list[Line]:
    """Measure everything on K of the teachers."""
    checkpoints, sources = zip(*((teachers.checkpoints[i], teachers.sources[i]) for i in drawn), strict=True)
    some = replace(teachers, checkpoints=list(checkpoints), sources=list(sources))
    names = tuple(checkpoint.name for checkpoint in checkpoints)
    options = FuseConfig(
        teachers=names,
        architecture=config.architecture,
        output=config.output / "student.safetensors",  # which nobody writes
        method="auto",
        generator=config.generator,
        base=config.base,
        data=config.data,
        split=config.split,
        calibration_images=config.calibration_images,
        batch_size=config.batch_size,
        seed=config.seed + seed,
        device=config.device,
        align=config.align,
        methods=config.methods,
    )
    begun = time.perf_counter()
    situation = find_situation(options, some, loaded, hooks)
    judges = open_judges(options, situation, hooks)
    best: Candidate | None = None
    starts, candidates = {}, []
    for candidate, made, student in contest(options, situation, judges, hooks):
        candidates.append(candidate)
        if made is None or student is None:
            continue
        if best is None or rank(candidate) > rank(best):
            best, starts[AUTO] = candidate, (made, student)
        if candidate.method in STARTS:
            starts[candidate.method] = made, student
    assert best is not None  # the best teacher, if nothing else
    spent = time.perf_counter() - begun  # with all that is judged
    most = max((one.memory for one in candidates if one.memory is not None), default=None)
    mean, ensemble = _baselines(some, judges)
    auto = replace(best, method=AUTO, seconds=spent, memory=most, note=best.method)
    candidates = [mean, *candidates, ensemble, auto]
    if config.distill_steps:
        candidates += _distilled(config, some, judges, situation, starts, config.seed + seed, hooks)
    return [
        Line(len(drawn), seed, names, one.method, one.validation, one.test, one.seconds, one.memory, one.note)
        for one in candidates
    ]


def _baselines(teachers: Teachers, judges: Judges) -> Iterator[Candidate]:
    """Measure the mean teacher and the ensemble."""
    views = [teachers.layout.timm_view(checkpoint) for checkpoint in teachers.checkpoints]
    models = [load_model(judges.blank, view, judges.bench.device) for view in views]
    found: dict[str, list[float]] = {MEAN: [], ENSEMBLE: []}
    begun = time.perf_counter()
    for images in (judges.validation, *([judges.test] if judges.test is not None else [])):
        answers = ask(judges.bench, models, images, stage="ensemble", teachers=len(models))
        assert answers.ensemble is not None
        found[MEAN].append(fmean(score(log_probs, answers.labels).top1 for log_probs in answers.log_probs))
        found[ENSEMBLE].append(score(answers.ensemble, answers.labels).top1)
    seconds = time.perf_counter() - begun
    for name, (validation, *test) in found.items():
        yield Candidate(name, validation, test[0] if test else None, None, seconds, None)


def _distilled(
    config: CompareConfig,
    teachers: Teachers,
    judges: Judges,
    situation: Situation,
    starts: Mapping[str, tuple[Made, Mapping[str, Any]]],
    seed: int,
    hooks: Hooks,
) -> Iterator[Candidate]:
    """Distil the ensemble into several starts, all with the same steps."""
    from wfcli.core.checkpoint import open_checkpoint
    from wfcli.engine.finetune import FinetuneConfig, finetune

    for name, (made, student) in starts.items():
        label = f"{name} + {config.distill_steps:,} steps"
        with scratch_folder("distilled", config.output) as folder:
            start, end = (folder / f"{part}.safetensors" for part in ("start", "end"))
            write_checkpoint(start, made.work.specs, iter(student.items()), made.provenance())
            options = FinetuneConfig(
                checkpoint=str(start),
                teachers=tuple(str(checkpoint.path) for checkpoint in teachers.checkpoints),
                architecture=config.architecture,
                data=config.data,
                steps=config.distill_steps,
                output=end,
                seed=seed,
                device=config.device,
            )
            begun = time.perf_counter()
            finetune(options, hooks)
            seconds = time.perf_counter() - begun
            state = dict(teachers.layout.timm_view(open_checkpoint(end)))
            told = judges.score(state, judges.test, label)
            # Its best step was chosen on the validation images: they say no more.
            yield Candidate(label, None, None if told is None else told.top1, None, seconds, None)
