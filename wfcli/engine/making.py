"""From opened teachers to the tensors of their student: as they come, or looked at and finished in memory.

Without a guard, data, probes or unlabelled images the student is never in memory as a whole; with any of them it is,
beside one net at a time that runs on the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from wfcli.core.architectures import input_config
from wfcli.core.layouts import STATISTICS
from wfcli.core.methods import METHODS, TENSORWISE
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.merging import Settings, merged, one_tensor
from wfcli.engine.student import average, calibrate, generate, is_finite, join
from wfcli.engine.teachers import Teachers
from wfcli.errors import ArchitectureError, DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wfcli.core.checkpoint import TensorSpec
    from wfcli.core.guard import Verdict
    from wfcli.core.images import Images
    from wfcli.engine.fitting import Loaded
    from wfcli.engine.fuse import FuseConfig
    from wfcli.engine.polish import Nets

LEAST_IMAGES = 16  # to learn from
ALIGN_IMAGES = 256  # that activations are compared on, at most
LOOK_IMAGES, LOOK_PIXELS = 256, 16 * 224 * 224  # of images that nets are looked at with, at a time


@dataclass(frozen=True)
class Work:
    """What the steps of one fuse share."""

    config: FuseConfig
    settings: Settings
    teachers: Teachers
    checked: Sequence[Finite]
    specs: Mapping[str, TensorSpec]
    device: torch.device
    hooks: Hooks
    aligned: bool = False  # whether the teachers were independent, and stand in one frame now
    labelled: Images | None = None  # for methods that learn from labels; None: the validation split
    weights: list[float] = field(default_factory=list)  # of the teachers, once the method has chosen them
    layers: dict[str, tuple[float, ...]] = field(default_factory=dict)  # the same layer by layer, of a generator
    learned: list[int] = field(default_factory=list)  # numbers of images that the method has looked at

    def is_copy(self) -> bool:
        """Tell whether the student turned out to be one of the teachers, whose statistics are its own."""
        return 1.0 in self.weights

    def nets(self) -> Nets:
        """Prepare to run teachers and student as nets."""
        from wfcli.engine.lineup import Bench
        from wfcli.engine.polish import open_nets

        settings = input_config(self.config.architecture)
        at_once = min(LOOK_IMAGES, max(4, LOOK_PIXELS // settings.size**2))
        bench = Bench(settings, self.device, at_once, self.hooks)
        return open_nets(bench, self.config.architecture, self.teachers, self.checked)


def tensors_of(work: Work, generator: Loaded | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the generator's student, or without one those of the method's, or of the soup."""
    config, settings = work.config, work.settings
    if config.method in TENSORWISE or settings.heads is not None:
        return merged(config, settings, work.specs, work.checked, work.hooks)
    if generator is None:
        made = average(work.specs, work.checked, work.hooks)
    else:
        made = generate(
            config.architecture, work.teachers, work.checked, generator.generator, work.device, work.hooks,
            work.weights, work.layers,
        )  # fmt: skip
    return _with_own(work, made) if settings.own else made


def _with_own(work: Work, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they come, but those that a rule makes otherwise."""
    for name, pieces in groupby(tensors, key=itemgetter(0)):
        yield from _own(work, name) if name in work.settings.own else pieces


def keep_rules(work: Work, student: dict[str, Tensor]) -> None:
    """Make tensors, in place, as the rules say, whatever came after; but statistics only where they are copied.

    Those of another method are the teachers' mean anyway, and calibrated where there are images.
    """
    for name, choice in work.settings.own.items():
        if choice.method == "copy" or not work.teachers.layout.to_timm[name][0].endswith(STATISTICS):
            student |= join(_own(work, name))


def _own(work: Work, name: str) -> Iterator[tuple[str, Tensor]]:
    choice = work.settings.own[name]
    yield from ((name, piece) for piece in one_tensor(name, choice, work.config.seed, work.settings, work.checked))


def looked_at(work: Work, generator: Loaded | None, calibrated: bool) -> tuple[dict[str, Tensor], Verdict | None, int]:
    """Return the student, calibrated, guarded and fitted to its teachers as was asked for.

    And what the guard found, and the number of unlabelled images.
    """
    config, settings, teachers = work.config, work.settings, work.teachers
    images = _load_images(config)

    def finished(of: Loaded | None) -> dict[str, Tensor]:
        made = join(tensors_of(work, of))
        raise_nonfinite(work.checked)
        if METHODS[config.method].data:
            from wfcli.engine.image_methods import learn

            base = None if settings.base is None else settings.base.view(teachers.layout)
            learnt, number = learn(config, settings, work.nets(), images, base, work.labelled, work.weights)
            _update(work, made, learnt)
            work.learned[:] = [number]
        elif work.aligned and of is None and config.method != "aligned-soup":  # a generator has learned to do without
            _mend(work, made, images)
        keep_rules(work, made)
        if calibrated and images is not None and not work.is_copy():
            calibrate(made, config.architecture, teachers, images, config.seed, work.device, work.hooks)
        return made

    student, verdict = finished(generator), None
    seeing = images is not None or sees_colours(config)
    if generator is not None and is_guarded(config, generator) and seeing and is_finite(student):
        from wfcli.core.probes import probe_images
        from wfcli.engine.polish import guard, guard_probes, some_pixels

        soup, side = finished(None), input_config(config.architecture).size
        number = guard_probes(side)
        pixels = probe_images(number, side) if images is None else some_pixels(images, number)
        view = teachers.layout.timm_view
        verdict = guard(work.nets(), view(student), view(soup), pixels)
        if verdict.broken:
            where, other = ("", "") if images is not None else (" on made-up images", ", --data looks at real images")
            work.hooks.warn(
                f"the student of {generator.name} is worse than the soup{where}: {verdict.sentence()}; "
                f"the soup is written instead (--no-guard keeps the student{other})"
            )
            student = soup
    if config.probes:
        _refit_on_probes(work, student)
    if config.unlabelled is None or images is None:
        return student, verdict, 0
    if settings.heads is not None:  # their teachers do not answer together
        return student, verdict, len(images)
    if is_finite(student):  # else there is nothing to learn from; `cast` says what is not finite
        student = _learn(work, student, images)
    return student, verdict, len(images)


def _load_images(config: FuseConfig) -> Images | None:
    """Load the images to look at nets with: those without labels, else those that calibrate, else none."""
    side = input_config(config.architecture).size
    if config.unlabelled is not None:
        from wfcli.core.data import load_unlabelled, same_dataset

        same = config.data is not None and same_dataset(config.data.source, config.unlabelled)
        column = config.data.label_column if config.data is not None and same else None
        images = load_unlabelled(config.unlabelled, side, limit=config.images, seed=config.seed, label_column=column)
        if len(images) < LEAST_IMAGES:
            raise DataError(
                f"data {config.unlabelled}: got {len(images)} images, expected at least {LEAST_IMAGES}",
                hint="a few hundred are worth while; without images use --probes",
            )
        return images
    if config.data is not None and config.calibration_images:
        from wfcli.core.data import available_splits, load_images

        if "train" not in available_splits(config.data):  # a net with BatchNorm was refused
            return None
        return load_images(config.data, "train", side, limit=config.calibration_images, seed=config.seed)
    return None


def some_inputs(config: FuseConfig) -> Tensor:
    """Return a few of the images, as a net takes them, [B, 3, H, W]."""
    from wfcli.engine.image_methods import inputs

    images = _load_images(config)
    if images is None:
        raise DataError(
            "--align activations: there is no training split to look at",
            hint="give --unlabelled, or data with a training split, or --align weights",
        )
    return inputs(images, input_config(config.architecture), ALIGN_IMAGES)


def is_guarded(config: FuseConfig, generator: Loaded) -> bool:
    """Tell whether a generator's student is looked at.

    One with a prior is not: it was tested on teachers of this base and these classes, and what it adds to them leads
    away from what they say.
    """
    return config.guard and generator.generator.config.frame is None


def sees_colours(config: FuseConfig) -> bool:
    """Tell whether the net takes images of three channels, as made-up ones have."""
    return dict(config.architecture.args).get("in_chans", 3) == 3


def _mend(work: Work, student: dict[str, Tensor], images: Images | None) -> None:
    """Give the mean of aligned nets, in place, the spreads that averaging has taken from its units."""
    import torch

    from wfcli.core.repair import lengthened, repair
    from wfcli.engine.image_methods import inputs
    from wfcli.engine.plans import plan_of

    nets, view, weights = work.nets(), work.teachers.layout.timm_view, work.settings.weights
    with torch.inference_mode():
        if images is None or any(name.endswith(STATISTICS) for name in nets.blank.state_dict()):
            plan = plan_of(work.config.architecture, work.teachers.num_classes)
            mended = lengthened(plan, view(student), nets.teachers, weights)
        else:
            work.hooks.progress("repairing", 0, 1)
            x = inputs(images, nets.bench.settings)  # in one piece: each layer sees all of them
            mended = repair(nets.blank, nets.head, view(student), nets.teachers, x, weights)
            work.hooks.progress("repairing", 1, 1)
    _update(work, student, mended)


def _refit_on_probes(work: Work, student: dict[str, Tensor]) -> None:
    """Fit the head of `student`, in place, on made-up images."""
    from wfcli.core.probes import probe_images
    from wfcli.engine.polish import refit_head

    nets = work.nets()
    pixels = probe_images(work.config.probes, nets.bench.settings.size, work.config.seed + 1)  # not the guard's
    _update(work, student, refit_head(nets, work.teachers.layout.timm_view(student), pixels, real=False))


def _learn(work: Work, student: dict[str, Tensor], images: Images) -> dict[str, Tensor]:
    """Return a student that is nearer to what its teachers say together of images without labels."""
    from wfcli.engine.polish import distance, distill, refit_head

    nets, view, config = work.nets(), work.teachers.layout.timm_view, work.config
    try:
        _update(work, student, refit_head(nets, view(student), images.pixels, real=True))
    except ArchitectureError as error:
        work.hooks.warn(f"{error.problems[0]}: it is not fitted on its own")
    if not config.distill_steps:
        return student
    moved = dict(student)
    learnt = distill(nets, view(student), images, config.distill_steps, config.seed, config.distill_lr)
    _update(work, moved, learnt)
    if needs_images(config, work.teachers):
        calibrate(moved, config.architecture, work.teachers, images, config.seed, work.device, work.hooks)
    before, after = distance(nets, [view(student), view(moved)], images)
    if after <= before:
        return moved
    work.hooks.warn(
        f"{config.distill_steps} steps of distillation lead away from the teachers (KL {before:.2f} before, "
        f"{after:.2f} after): the student before them is written; a lower --distill-lr may do better"
    )
    return student


def _update(work: Work, student: dict[str, Tensor], learnt: Mapping[str, Tensor]) -> None:
    """Write tensors with timm's names to `student`, in place."""
    for timm_name, tensor in learnt.items():
        name, shape = work.teachers.layout.to_file[timm_name]
        student[name] = tensor.reshape(shape)


def needs_images(config: FuseConfig, teachers: Teachers) -> bool:
    """Tell whether the student's BatchNorm is to be calibrated."""
    has_statistics = any(name.endswith(STATISTICS) for name, _ in teachers.layout.to_timm.values())
    given = config.unlabelled is not None or (config.data is not None and config.calibration_images > 0)
    return given and has_statistics
