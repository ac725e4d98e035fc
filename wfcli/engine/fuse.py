"""Turn T teachers into one student.

Resolve the sources, open them, check their structure from the headers, find out how they are related, generate or
average layer by layer, calibrate BatchNorm where there is data, write the student with its provenance, compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wfcli.core.architectures import Architecture, match_layout
from wfcli.core.checkpoint import check_writable, open_checkpoint
from wfcli.core.devices import pick_device
from wfcli.core.methods import METHODS, TENSORWISE
from wfcli.engine.filters import Rule
from wfcli.engine.heads import Heads, check_heads, join_heads
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.made import Made, make
from wfcli.engine.making import LEAST_IMAGES, needs_images, sees_colours
from wfcli.engine.merging import check_method, look_at_base, settle
from wfcli.engine.situation import find_situation
from wfcli.engine.student import DTYPES
from wfcli.engine.teachers import Teachers, check_not_overwritten, open_teachers
from wfcli.engine.writing import AHEAD, write_student
from wfcli.errors import DataError, GeneratorError, Problems, WfError

if TYPE_CHECKING:
    from wfcli.core.data import DataSpec
    from wfcli.core.guard import Verdict
    from wfcli.engine.align import Alignment
    from wfcli.engine.auto import Contest
    from wfcli.engine.evaluate import Comparison
    from wfcli.engine.fitting import Loaded


LEAST_PROBES = 100
ALIGN = ("auto", "weights", "activations", "none")


@dataclass(frozen=True)
class FuseConfig:
    """Options of `wfcli fuse`."""

    teachers: tuple[str, ...]
    architecture: Architecture
    output: Path
    method: str = "weightformer"
    generator: str | None = None  # None: pretrained:universal where it fits
    base: str | None = None  # the teachers' common ancestor, for methods that take it
    weights: tuple[float, ...] | None = None  # of the teachers, for methods that take them
    params: tuple[tuple[str, float], ...] = ()  # of the method, others than its defaults
    rules: tuple[Rule, ...] = ()  # tensors that are made otherwise: pattern, key, value
    heads: str | None = None  # of teachers with other classes: keep:N, stack or drop; None: all have the same
    methods: tuple[str, ...] = ()  # that auto tries; none: all that the situation allows
    time_budget: float | None = None  # seconds after which auto begins no other method
    data: DataSpec | None = None  # to calibrate BatchNorm and to compare
    split: str = "test"
    calibration_images: int = 4096
    batch_size: int = 500  # of the comparison
    seed: int = 0
    device: str = "auto"
    dtype: str = "keep"  # or float32, bfloat16, float16
    align: str = "auto"  # independent teachers into one frame, by weights; or weights, activations: any; or none
    guard: bool = True  # against a generator's student that is worse than the soup
    probes: int = 0  # made-up images to fit the head on
    unlabelled: str | None = None  # images without labels to learn from
    images: int = 1000  # of those
    distill_steps: int = 100  # on those
    distill_lr: float | None = None  # None: by the kind of net
    max_shard_size: int | None = None  # bytes; a larger student is written as shards and their index
    pictures: bool = False  # measure also what the pictures of a report show; with `data`


@dataclass(frozen=True)
class FuseResult:
    """What a fuse made."""

    output: Path
    digest: str  # sha256 of the student's file
    method: str  # the one really used
    generator: str | None
    generator_digest: str | None  # sha256 of its weights
    teachers: tuple[str, ...]
    base: str | None  # the checkpoint that the method measured the teachers from
    origin: str | None  # "base" or "mean" of the teachers: what that is; None where it measures them from nothing
    weights: tuple[float, ...] | None  # of the teachers, 0..1: as given, or in the generator's mixing (mean over rows)
    alignment: Alignment | None  # None: the teachers were left as they are
    regime: str | None  # how the teachers are related, one sentence; None where the method does not ask
    calibrated: bool
    learned: int  # images that the method itself looked at
    probes: int  # made-up images that the head was fitted on
    unlabelled: int  # real images without labels that it has learnt from
    guard: Verdict | None  # None: not asked
    seconds: float  # without the comparison
    comparison: Comparison | None = None
    contest: Contest | None = None  # of --method auto: what was tried
    mixing: Mapping[str, tuple[float, ...]] | None = None  # layer -> weight of each teacher, for the pictures


def fuse(config: FuseConfig, hooks: Hooks | None = None) -> FuseResult:
    """Fuse the teachers into one student and write it to `config.output`.

    Without a generator that fits, `weightformer` gives the soup and says so through `hooks.warn`: an untrained
    generator is the soup.

    Raises:
        SourceError, ArchitectureError, CheckpointError: teachers that are missing, broken or do not belong together;
            numbers that are not finite (all of them, after reading; nothing is written).
        GeneratorError: the generator that was asked for is damaged or does not belong to these teachers.
        DataError: the dataset or its split is missing, or it has other classes.
        OutputError: the student cannot be written.
    """
    hooks = hooks or Silent()
    started = time.perf_counter()
    teachers, heads, loaded = _open(config, hooks)
    settings = settle(config, teachers, heads)  # what headers can tell is told first
    if settings.base is not None:
        check_not_overwritten(config.output, [settings.base.file.checkpoint], sharded=config.max_shard_size is not None)
    situation = find_situation(config, teachers, loaded, hooks)
    if heads is None:
        from wfcli.engine.doubts import doubt_weights

        doubt_weights(config.architecture, teachers, situation.checked, situation.relation, hooks)
    if settings.base is not None:
        look_at_base(config.architecture, teachers, settings.base, situation.checked, hooks)
    contest = None
    if config.method == "auto":
        from wfcli.engine.auto import choose

        made, contest = choose(config, situation, hooks)
    else:
        made = make(config, settings, situation, hooks)
    output, digest = write_student(config, made)
    seconds = time.perf_counter() - started
    names = tuple(checkpoint.name for checkpoint in teachers.checkpoints)
    base = made.work.settings.base
    return FuseResult(
        output=output,
        digest=digest,
        method=made.record["method"],
        generator=made.generator.name if made.generator else None,
        generator_digest=made.generator.digest if made.generator else None,
        teachers=names,
        base=base.file.checkpoint.name if base else None,
        origin=made.record.get("origin"),
        weights=made.weights,
        alignment=made.alignment,
        regime=situation.relation.sentence(names) if situation.relation else None,
        calibrated=made.calibrated,
        learned=made.record.get("learned_from", 0),
        probes=config.probes,
        unlabelled=made.seen if heads is None else 0,  # with heads of their own it calibrates, no more
        guard=made.verdict,
        seconds=seconds,
        comparison=_compare(config, output, made, hooks),
        contest=contest,
        mixing=dict(made.work.layers) if config.pictures and made.work.layers else None,
    )


def _open(config: FuseConfig, hooks: Hooks) -> tuple[Teachers, Heads | None, Loaded | None]:
    """Open the teachers, and the generator that was asked for; check all that headers and names can tell."""
    teachers, heads, loaded = None, None, None
    problems = Problems()
    with problems:
        _check_options(config)
    with problems:
        check_writable(config.output)
    with problems:
        # safetensors: without torch until all fits
        same = config.heads is None
        teachers = open_teachers(config.teachers, config.architecture, same_classes=same, most=AHEAD)
        check_not_overwritten(config.output, teachers.checkpoints, sharded=config.max_shard_size is not None)
        if config.heads is not None:
            teachers, heads = join_heads(teachers, config.architecture, config.heads)
    if config.device != "auto":  # which always finds one
        with problems:
            pick_device(config.device)
    if config.method in ("weightformer", "auto") and config.generator is not None:
        from wfcli.engine.fitting import check_generator_stays, load_named

        with problems:
            loaded = load_named(config.generator)
            check_generator_stays(config.output, loaded)
    if config.data is not None:
        from wfcli.engine.classes import check_data, head_of

        known = [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints] if teachers else []
        splits = [config.split, *(["validation"] if config.method == "auto" else [])]
        with problems:
            check_data(config.data, splits, known, hooks)
        if teachers and config.unlabelled is None and needs_images(config, teachers):
            with problems:
                _check_training_split(config.data)
    if config.unlabelled is not None:
        from wfcli.core.data import check_unlabelled

        with problems:
            check_unlabelled(config.unlabelled)
    problems.raise_all()
    assert teachers is not None
    return teachers, heads, loaded


def _check_options(config: FuseConfig) -> None:
    check_method(config)
    if config.pictures and config.data is None:
        raise WfError("pictures: got no images to look at", hint="give --data")
    if config.dtype != "keep" and config.dtype not in DTYPES:
        raise WfError(f"unknown dtype {config.dtype!r}", hint=f"use keep, {', '.join(DTYPES)}")
    if config.method not in ("weightformer", "auto") and config.generator is not None:
        raise GeneratorError(
            f"--generator goes with --method weightformer, got --method {config.method}", hint="leave one of them out"
        )
    _check_heads(config)
    _check_auto(config)
    if config.probes < 0 or 0 < config.probes < LEAST_PROBES:
        raise WfError(
            f"--probes: got {config.probes}, expected 0 or at least {LEAST_PROBES}", hint="2000 is a good number"
        )
    for option, given in (("--probes", config.probes), ("--unlabelled", config.unlabelled is not None)):
        if given and not sees_colours(config):
            raise WfError(
                f"{option}: its images have 3 channels, the net has another number", hint=f"leave out {option}"
            )
    if config.unlabelled == "":
        raise WfError("--unlabelled: got nothing, expected a dataset", hint="give a folder of images, say")
    if config.distill_steps < 0 or (config.distill_lr is not None and not 0 < config.distill_lr < math.inf):
        raise WfError(
            f"--distill-steps {config.distill_steps}, --distill-lr {config.distill_lr}: expected at least 0, above 0",
            hint="leave them out",
        )
    if config.unlabelled is not None and config.probes:
        raise WfError(
            "--probes and --unlabelled: got both, expected one", hint="real images tell more: leave out --probes"
        )
    if config.unlabelled is not None and config.images < LEAST_IMAGES:
        raise WfError(
            f"--images: got {config.images}, expected at least {LEAST_IMAGES}", hint="a few hundred are worth while"
        )
    if config.align not in ALIGN:
        raise WfError(f"unknown --align {config.align!r}", hint=f"use one of {', '.join(ALIGN)}")
    blind = config.data is None and config.unlabelled is None
    if blind and config.align == "activations":
        raise WfError(
            "--align activations: got no images to look at", hint="give --data or --unlabelled, or --align weights"
        )
    method = METHODS.get(config.method)
    if blind and method is not None and method.data:
        raise WfError(
            f"--method {config.method}: got no images to look at", hint="give --data or --unlabelled, or --method soup"
        )
    if config.data is None and method is not None and method.data == "labels":
        raise WfError(
            f"--method {config.method}: got no images with labels", hint="give --data, or a method that needs none"
        )
    if config.batch_size < 1:
        raise WfError(f"--batch-size: got {config.batch_size}, expected at least 1", hint="see wfcli fuse --help")


def _check_heads(config: FuseConfig) -> None:
    if config.heads is None:
        return
    check_heads(config.heads)
    if config.method not in ("soup", *TENSORWISE):
        raise WfError(
            f"--heads goes with methods that go tensor by tensor, got --method {config.method}",
            hint=f"use soup, {', '.join(sorted(TENSORWISE))}",
        )
    if config.data is not None or config.probes:
        raise WfError(
            "--heads: teachers of other classes do not answer together",
            hint="leave out --data and --probes; --unlabelled calibrates BatchNorm, wfcli eval measures the student",
        )
    if config.heads == "drop" and config.unlabelled is not None:
        raise WfError("--heads drop: without a head the net answers nothing", hint="leave out --unlabelled")


def _check_auto(config: FuseConfig) -> None:
    if config.method != "auto":
        given = [("--methods", config.methods), ("--time-budget", config.time_budget is not None)]
        for option, wanted in given:
            if wanted:
                raise WfError(
                    f"{option} goes with --method auto, got --method {config.method}", hint=f"leave out {option}"
                )
        return
    check_candidates(config.methods)
    if config.data is None:
        raise WfError("--method auto: got no images to choose by", hint="give --data, with labels")
    if config.split == "validation":
        raise WfError(
            "--method auto: it chooses on the validation split, which then says nothing else",
            hint="leave out --split: it is test, then",
        )
    wanted = config.methods or tuple(METHODS)
    if config.generator is not None and "weightformer" not in wanted:
        raise WfError("--methods: none of them takes --generator", hint="add weightformer, or leave it out")
    if config.base is not None and not any(METHODS[name].base for name in wanted):
        raise WfError("--methods: none of them takes --base", hint="leave it out")
    of_one = {"--set": config.rules, "--weights": config.weights, "--param": config.params, "--probes": config.probes}
    for option, wanted in of_one.items():
        if wanted:
            raise WfError(f"--method auto: {option} goes with one method", hint=f"leave out {option}, or name a method")
    if config.time_budget is not None and not 0 < config.time_budget < math.inf:
        raise WfError(
            f"--time-budget: got {config.time_budget:g}, expected more than 0 seconds, finite", hint="leave it out"
        )


def check_candidates(methods: Sequence[str]) -> None:
    """Refuse methods that cannot be tried beside others.

    Raises:
        WfError: some are unknown, or want options of their own.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise WfError(f"--methods: unknown: {', '.join(unknown)}", hint="wfcli methods lists them")
    if "weighted" in methods:
        raise WfError("--methods: weighted goes by --weights, which are for one method", hint="leave it out")


def _check_training_split(data: DataSpec) -> None:
    from wfcli.core.data import available_splits

    splits = available_splits(data)
    if "train" not in splits:
        raise DataError(
            f"data {data.source}: no training split to calibrate BatchNorm with; it has {', '.join(splits)}",
            hint="give data with a training split, or leave the calibration out: --calibration-images 0",
        )


def _compare(config: FuseConfig, output: Path, made: Made, hooks: Hooks) -> Comparison | None:
    """Compare the student that was written with the teachers it was made from, where there are images for it."""
    if config.data is None:
        return None
    from wfcli.engine.evaluate import EvaluateConfig, Student, compare

    file = open_checkpoint(output)
    layout = match_layout(config.architecture, file.specs, file.name)
    options = EvaluateConfig(
        checkpoints=(str(output),),
        teachers=config.teachers,
        architecture=config.architecture,
        data=config.data,
        split=config.split,
        batch_size=config.batch_size,
        calibration_images=config.calibration_images,
        seed=config.seed,
        device=config.device,
        pictures=config.pictures,
    )
    framed = made.work.checked if made.alignment is not None else None
    return compare([Student(file, layout)], made.work.teachers, options, hooks, framed)
