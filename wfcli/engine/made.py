"""One method's student for teachers that are open: its tensors, and the record of how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wfcli.core.methods import METHODS
from wfcli.engine.finite import Finite
from wfcli.engine.hooks import Hooks
from wfcli.engine.making import Work, is_guarded, keep_rules, looked_at, needs_images, tensors_of
from wfcli.engine.merging import Settings
from wfcli.engine.provenance import data_record, known_classes, made_by, source_name
from wfcli.engine.recipe import recipe_of
from wfcli.engine.student import FUSE_HINTS, METHOD_HINTS, cast, output_specs
from wfcli.engine.teachers import Teachers, source_record

if TYPE_CHECKING:
    from torch import Tensor

    from wfcli.core.guard import Verdict
    from wfcli.core.images import Images
    from wfcli.engine.align import Alignment
    from wfcli.engine.fitting import Fitted, Loaded
    from wfcli.engine.fuse import FuseConfig
    from wfcli.engine.situation import Situation


@dataclass(frozen=True)
class Made:
    """A student whose tensors are yet to be read, and what is known about it."""

    work: Work
    tensors: Iterator[tuple[str, Tensor]]  # in the types of the file; large ones in pieces
    record: dict[str, Any]
    generator: Loaded | None  # that made it
    calibrated: bool
    seen: int  # images without labels that it has learnt from
    verdict: Verdict | None  # None: the guard was not asked
    alignment: Alignment | None  # None: the teachers it was made from stood as they are

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Of the teachers, 0..1, once the tensors are read: as given, or in the generator's mixing (mean over rows)."""
        if self.work.weights:
            return tuple(self.work.weights)
        return self.work.settings.weights if "weights" in self.record else None

    def provenance(self) -> dict[str, Any]:
        """Return the record with the digests of all that the student is made from."""
        return {**self.record, **_sources(self.work.teachers, self.work.settings, late=False)}


def make(
    config: FuseConfig, settings: Settings, situation: Situation, hooks: Hooks, labelled: Images | None = None
) -> Made:
    """Make the student of `config.method`; where nothing looks at it as a whole, its tensors come as they are read.

    `labelled` are for methods that learn from labels, instead of the validation split.

    Raises:
        GeneratorError: the generator that was asked for does not belong to these teachers.
        CheckpointError: weights that are not finite.
        DataError: a method that looks at images has none.
    """
    teachers, checked, aligned = situation.teachers, situation.checked, situation.alignment is not None
    found = _fit(config, situation, hooks)
    if settings.base is not None and settings.base.other:
        hooks.warn(f"without the base: {', '.join(sorted(settings.base.other))} (not in it, or of another shape)")
    specs = output_specs(teachers, config.dtype)
    work = Work(config, settings, teachers, checked, specs, situation.device, hooks, aligned, labelled)
    offered = found.loaded if found else None
    calibrated = needs_images(config, teachers)
    verdict, seen = None, 0
    looking = calibrated or config.probes or config.unlabelled is not None or aligned
    looking = looking or bool(METHODS[config.method].data)
    if looking or (offered is not None and is_guarded(config, offered)):
        student, verdict, seen = looked_at(work, offered, calibrated)
        keep_rules(work, student)
        tensors = iter(student.items())
    else:
        tensors = tensors_of(work, offered)  # as they come: the student is never in memory as a whole
    broken = verdict is not None and verdict.broken
    loaded, rejected = (None, offered) if broken else (offered, None)
    if broken:
        work.weights.clear()  # the rejected one's
        work.layers.clear()
    calibrated = calibrated and not work.is_copy()
    record = _record(config, settings, teachers, loaded, rejected, calibrated, seen, sum(work.learned))
    if config.method == "greedy":
        record["weights"] = work.weights
    if situation.alignment is not None:
        record["alignment"] = {"how": situation.alignment.how, "moved": list(situation.alignment.moved)}
    read: Sequence[Finite] = [*checked, *([settings.base.file] if settings.base else [])]
    hints = FUSE_HINTS if loaded is not None else METHOD_HINTS
    written = cast(tensors, work.specs, read, hints)
    return Made(work, written, record, loaded, calibrated, seen, verdict, situation.alignment)


def _fit(config: FuseConfig, situation: Situation, hooks: Hooks) -> Fitted | None:
    """Find the generator for these teachers, where the method wants one."""
    relation = situation.relation
    if config.method != "weightformer" or relation is None:
        return None
    from wfcli.engine.fitting import fit_generator

    found = fit_generator(situation.loaded, config.architecture, situation.teachers, situation.checked, relation)
    if found.warning is not None:
        hooks.warn(found.warning)
    if config.align == "none" and found.loaded is not None and not relation.shared_base:
        hooks.warn(f"generator {found.loaded.name}: --align none leaves the teachers out of its frame: leave it out")
    return found


def _sources(teachers: Teachers, settings: Settings, *, late: bool) -> dict[str, Any]:
    base = settings.base
    record: dict[str, Any] = {"sources": teachers.provenance(late=late)}
    return record if base is None else {**record, "base": source_record(base.source, base.file.checkpoint, late=late)}


def _record(
    config: FuseConfig,
    settings: Settings,
    teachers: Teachers,
    generator: Loaded | None,
    rejected: Loaded | None,
    calibrated: bool,
    seen: int,
    learned: int,
) -> dict[str, Any]:
    heads = settings.heads
    record = {
        **made_by("fuse", config.architecture, config.seed),
        **_sources(teachers, settings, late=True),
        "method": "weightformer" if generator else "soup" if config.method == "weightformer" else config.method,
        "generator": generator.record() if generator else None,
        "dtype": config.dtype,
        "classes": known_classes(teachers.checkpoints) if heads is None else heads.classes,
        "recipe": recipe_of(config),
    }
    method = METHODS[config.method]
    if config.weights is not None or config.method == "fedavg":
        record["weights"] = list(settings.weights)
    if method.params:
        record["params"] = dict(settings.params)
    if method.base and record["method"] == config.method:
        record["origin"] = "mean" if settings.base is None else "base"
    if learned:
        record["learned_from"] = learned
    if rejected is not None:
        record["rejected"] = rejected.record()  # its student was worse than the soup
    if config.unlabelled is not None:
        source = source_name(config.unlabelled)
        steps = config.distill_steps if heads is None else 0
        record["unlabelled"] = {"source": source, "images": seen, "distill_steps": steps}
    elif config.data is not None and calibrated:
        record["calibration"] = {**data_record(config.data), "images": config.calibration_images}
    return record
