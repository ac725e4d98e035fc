"""From opened teachers to the tensors of their student: as they come, or looked at and finished in memory.

Without a guard, data, probes or unlabelled images the student is never in memory as a whole; with any of them it is,
beside one net at a time that runs on the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wfcli.core.architectures import input_config
from wfcli.core.layouts import STATISTICS
from wfcli.core.methods import METHODS, TENSORWISE
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.merging import Settings, merged
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
ALIGN_IMAGES = 256  # that activations are compared on
REPAIR_IMAGES = 2000  # at most
LOOK_PIXELS = 256 * 32 * 32  # of images that nets are looked at with, at a time


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
    weights: list[float] = field(default_factory=list)  # of the teachers, once a generator has made the student

    def nets(self) -> Nets:
        """Prepare to run teachers and student as nets."""
        from wfcli.engine.lineup import Bench
        from wfcli.engine.polish import open_nets

        settings = input_config(self.config.architecture)
        at_once = max(4, LOOK_PIXELS // settings.size**2)
        bench = Bench(settings, self.device, at_once, self.hooks)
        return open_nets(bench, self.config.architecture, self.teachers, self.checked)


def tensors_of(work: Work, generator: Loaded | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the generator's student, or without one those of the method's, or of the soup."""
    if work.config.method in TENSORWISE:
        return merged(work.config, work.settings, work.specs, work.checked, work.hooks)
    if generator is None:
        return average(work.specs, work.checked, work.hooks)
    arch = work.config.architecture
    return generate(arch, work.teachers, work.checked, generator.generator, work.device, work.hooks, work.weights)


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
            _update(work, made, learn(config, settings, work.nets(), images, base))
        elif work.aligned and of is None:  # a generator has learned to do without
            _mend(work, made, images)
        if calibrated and images is not None:
            calibrate(made, config.architecture, teachers, images, config.seed, work.device, work.hooks)
        return made

    student, verdict = finished(generator), None
    if generator is not None and config.guard and (images is not None or sees_colours(config)) and is_finite(student):
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
    if is_finite(student):  # else there is nothing to learn from; `cast` says what is not finite
        student = _learn(work, student, images)
    return student, verdict, len(images)


def _load_images(config: FuseConfig) -> Images | None:
    """Load the images to look at nets with: those without labels, else those that calibrate, else none."""
    side = input_config(config.architecture).size
    if config.unlabelled is not None:
        from wfcli.core.data import load_unlabelled

        column = config.data.label_column if config.data and config.data.source == config.unlabelled else None
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
    from wfcli.core.images import to_input
    from wfcli.engine.polish import some_pixels

    images = _load_images(config)
    if images is None:
        raise DataError(
            "--align activations: there is no training split to look at",
            hint="give --unlabelled, or data with a training split, or --align weights",
        )
    return to_input(some_pixels(images, ALIGN_IMAGES), input_config(config.architecture))


def sees_colours(config: FuseConfig) -> bool:
    """Tell whether the net takes images of three channels, as made-up ones have."""
    return dict(config.architecture.args).get("in_chans", 3) == 3


def _mend(work: Work, student: dict[str, Tensor], images: Images | None) -> None:
    """Give the mean of aligned nets, in place, the spreads that averaging has taken from its units."""
    import torch

    from wfcli.core.images import to_input
    from wfcli.core.plan import plan_layers
    from wfcli.core.repair import lengthened, repair

    nets, view = work.nets(), work.teachers.layout.timm_view
    with torch.inference_mode():
        if images is None or any(name.endswith(STATISTICS) for name in nets.blank.state_dict()):
            mended = lengthened(plan_layers(nets.blank, nets.head), view(student), nets.teachers)
        else:
            work.hooks.progress("repairing", 0, 1)
            pixels = images.pixels[torch.arange(min(len(images), REPAIR_IMAGES))]
            batches = [to_input(part, nets.bench.settings) for part in torch.split(pixels, nets.bench.batch_size)]
            mended = repair(nets.blank, nets.head, view(student), nets.teachers, batches)
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
