"""Turn T teachers into one student.

Resolve the sources, open them, check their structure from the headers, find out how they are related, generate or
average layer by layer, calibrate BatchNorm where there is data, write the student with its provenance, compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.architectures import Architecture, match_layout
from wfcli.core.checkpoint import check_writable, open_checkpoint, write_checkpoint
from wfcli.core.devices import pick_device
from wfcli.core.methods import METHODS
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.making import LEAST_IMAGES, Work, looked_at, needs_images, sees_colours, some_inputs, tensors_of
from wfcli.engine.merging import Settings, check_method, settle
from wfcli.engine.provenance import data_record, known_classes, made_by, source_name
from wfcli.engine.student import DTYPES, cast, output_specs
from wfcli.engine.teachers import Teachers, check_not_overwritten, open_teachers, source_record
from wfcli.errors import DataError, GeneratorError, Problems, WfError

if TYPE_CHECKING:
    from wfcli.core.data import DataSpec
    from wfcli.core.guard import Verdict
    from wfcli.core.regime import Regime
    from wfcli.engine.align import Alignment
    from wfcli.engine.evaluate import Comparison
    from wfcli.engine.fitting import Fitted, Loaded


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
    weights: tuple[float, ...] | None  # of the teachers, 0..1: as given, or in the generator's mixing (mean over rows)
    alignment: Alignment | None  # None: the teachers were left as they are
    regime: str | None  # how the teachers are related, one sentence; None where the method does not ask
    calibrated: bool
    probes: int  # made-up images that the head was fitted on
    unlabelled: int  # real images without labels that it has learnt from
    guard: Verdict | None  # None: not asked
    seconds: float  # without the comparison
    comparison: Comparison | None = None


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
    teachers, loaded = _open(config, hooks)
    settings = settle(config, teachers)
    device = pick_device(config.device)
    checked = [Finite(checkpoint) for checkpoint in teachers.checkpoints]
    relation = _relate(config, teachers, checked)
    alignment = None
    independent = relation is not None and not relation.shared_base
    reference = loaded.generator.reference if loaded else {}
    if config.align in ("weights", "activations") or (config.align == "auto" and (independent or reference)):
        from wfcli.engine.align import align

        if config.base is not None:
            raise WfError(
                "--base: the teachers come into a frame that is not the base's",
                hint="--align none takes them for fine-tunes of it; for independent ones leave --base out",
            )
        inputs = some_inputs(config) if config.align == "activations" else None
        checked, alignment = align(
            config.architecture, teachers, checked, config.seed, hooks, inputs, reference or None
        )
    found = _fit(config, teachers, checked, loaded, relation, hooks)
    if settings.base is not None and settings.base.other:
        hooks.warn(f"without the base: {', '.join(sorted(settings.base.other))} (not in it, or of another shape)")
    specs = output_specs(teachers, config.dtype)
    work = Work(config, settings, teachers, checked, specs, device, hooks, alignment is not None)
    offered = found.loaded if found else None
    calibrated = needs_images(config, teachers)
    verdict, seen = None, 0
    looking = calibrated or config.probes or config.unlabelled is not None or alignment is not None
    looking = looking or bool(METHODS[config.method].data)
    if looking or (offered is not None and config.guard):
        student, verdict, seen = looked_at(work, offered, calibrated)
        tensors = iter(student.items())
    else:
        tensors = tensors_of(work, offered)  # as they come: the student is never in memory as a whole
    broken = verdict is not None and verdict.broken
    loaded, rejected = (None, offered) if broken else (offered, None)
    record = _record(config, settings, teachers, loaded, rejected, calibrated, seen)
    if alignment is not None:
        record["alignment"] = {"how": alignment.how, "moved": list(alignment.moved)}
    read = [*checked, *([settings.base.file] if settings.base else [])]
    digest = write_checkpoint(config.output, work.specs, cast(tensors, work.specs, read), record)
    seconds = time.perf_counter() - started
    names = tuple(checkpoint.name for checkpoint in teachers.checkpoints)
    return FuseResult(
        output=config.output,
        digest=digest,
        method=record["method"],
        generator=loaded.name if loaded else None,
        generator_digest=loaded.digest if loaded else None,
        teachers=names,
        base=settings.base.file.checkpoint.name if settings.base else None,
        weights=tuple(work.weights) if loaded else settings.weights if "weights" in record else None,
        alignment=alignment,
        regime=relation.sentence(names) if relation else None,
        calibrated=calibrated,
        probes=config.probes,
        unlabelled=seen,
        guard=verdict,
        seconds=seconds,
        comparison=_compare(config, teachers, hooks),
    )


def _open(config: FuseConfig, hooks: Hooks) -> tuple[Teachers, Loaded | None]:
    """Open the teachers, and the generator that was asked for; check all that headers and names can tell."""
    teachers, loaded = None, None
    problems = Problems()
    with problems:
        _check_options(config)
    with problems:
        check_writable(config.output)
    with problems:
        teachers = open_teachers(config.teachers, config.architecture)  # safetensors: without torch until all fits
        check_not_overwritten(config.output, teachers.checkpoints)
    if config.device != "auto":  # which always finds one
        with problems:
            pick_device(config.device)
    if config.method == "weightformer" and config.generator is not None:
        from wfcli.engine.fitting import load_named

        with problems:
            loaded = load_named(config.generator)
    if config.data is not None:
        from wfcli.engine.classes import check_data, head_of

        heads = [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints] if teachers else []
        with problems:
            check_data(config.data, [config.split], heads, hooks)
        if teachers and config.unlabelled is None and needs_images(config, teachers):
            with problems:
                _check_training_split(config.data)
    if config.unlabelled is not None:
        from wfcli.core.data import check_unlabelled

        with problems:
            check_unlabelled(config.unlabelled)
    problems.raise_all()
    assert teachers is not None
    return teachers, loaded


def _check_options(config: FuseConfig) -> None:
    check_method(config)
    if config.dtype != "keep" and config.dtype not in DTYPES:
        raise WfError(f"unknown dtype {config.dtype!r}", hint=f"use keep, {', '.join(DTYPES)}")
    if config.method != "weightformer" and config.generator is not None:
        raise GeneratorError(
            f"--generator goes with --method weightformer, got --method {config.method}", hint="leave one of them out"
        )
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
    if blind and METHODS[config.method].data:
        raise WfError(
            f"--method {config.method}: got no images to look at", hint="give --data or --unlabelled, or --method soup"
        )
    if config.data is None and METHODS[config.method].data == "labels":
        raise WfError(
            f"--method {config.method}: got no images with labels", hint="give --data, or a method that needs none"
        )
    if config.batch_size < 1:
        raise WfError(f"--batch-size: got {config.batch_size}, expected at least 1", hint="see wfcli fuse --help")


def _check_training_split(data: DataSpec) -> None:
    from wfcli.core.data import available_splits

    splits = available_splits(data)
    if "train" not in splits:
        raise DataError(
            f"data {data.source}: no training split to calibrate BatchNorm with; it has {', '.join(splits)}",
            hint="give data with a training split, or leave the calibration out: --calibration-images 0",
        )


def _relate(config: FuseConfig, teachers: Teachers, checked: Sequence[Finite]) -> Regime | None:
    """Find out how the teachers are related, where that is needed: in full for a generator, else at a glance."""
    if config.method != "weightformer" and config.align != "auto":
        return None
    from wfcli.engine.relation import glance, relate

    if config.method != "weightformer":
        return glance(teachers, checked)
    relation = relate(config.architecture, teachers, checked)
    raise_nonfinite(checked)
    return relation


def _fit(
    config: FuseConfig,
    teachers: Teachers,
    checked: Sequence[Finite],
    loaded: Loaded | None,
    relation: Regime | None,
    hooks: Hooks,
) -> Fitted | None:
    """Find the generator for these teachers, where the method wants one."""
    if config.method != "weightformer" or relation is None:
        return None
    from wfcli.engine.fitting import fit_generator

    found = fit_generator(loaded, config.architecture, teachers, checked, relation)
    if found.warning is not None:
        hooks.warn(found.warning)
    if config.align == "none" and found.loaded is not None and not relation.shared_base:
        hooks.warn(f"generator {found.loaded.name}: --align none leaves the teachers out of its frame: leave it out")
    return found


def _record(
    config: FuseConfig,
    settings: Settings,
    teachers: Teachers,
    generator: Loaded | None,
    rejected: Loaded | None,
    calibrated: bool,
    seen: int,
) -> dict[str, Any]:
    record = {
        **made_by("fuse", config.architecture, config.seed),
        "sources": teachers.provenance(),
        "method": "weightformer" if generator else "soup" if config.method == "weightformer" else config.method,
        "generator": {"name": generator.name, "sha256": generator.digest} if generator else None,
        "dtype": config.dtype,
        "classes": known_classes(teachers.checkpoints),
    }
    method = METHODS[config.method]
    if config.weights is not None or config.method == "fedavg":
        record["weights"] = list(settings.weights)
    if method.params:
        record["params"] = dict(settings.params)
    if settings.base is not None:
        record["base"] = source_record(settings.base.source, settings.base.file.checkpoint)
    if not config.guard:
        record["guard"] = False
    if rejected is not None:
        record["rejected"] = {"name": rejected.name, "sha256": rejected.digest}  # its student was worse than the soup
    if config.probes:
        record["probes"] = config.probes
    if config.unlabelled is not None:
        source = source_name(config.unlabelled)
        steps = config.distill_steps
        record["unlabelled"] = {"source": source, "images": seen, "distill_steps": steps}
    elif config.data is not None and calibrated:
        record["calibration"] = {**data_record(config.data), "images": config.calibration_images}
    return record


def _compare(config: FuseConfig, teachers: Teachers, hooks: Hooks) -> Comparison | None:
    """Compare the student that was written with the teachers it was made from, where there are images for it."""
    if config.data is None:
        return None
    from wfcli.engine.evaluate import EvaluateConfig, Student, compare

    file = open_checkpoint(config.output)
    layout = match_layout(config.architecture, file.specs, file.name)
    options = EvaluateConfig(
        checkpoints=(str(config.output),),
        teachers=config.teachers,
        architecture=config.architecture,
        data=config.data,
        split=config.split,
        batch_size=config.batch_size,
        calibration_images=config.calibration_images,
        seed=config.seed,
        device=config.device,
    )
    return compare([Student(file, layout)], teachers, options, hooks)
