"""`--method auto`: every method that the situation allows, judged on validation images; the best one's student.

The images to judge by are no method's to learn from: those that learn from labels have one half of the validation
split, and all are judged on the other. A copy of the best teacher is among the candidates, so that no student is
written which is worse there than that one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wfcli.core.architectures import build_model, input_config
from wfcli.core.data import Images, available_splits, load_images
from wfcli.core.memory import PeakMemory
from wfcli.core.methods import METHODS
from wfcli.core.metrics import Scores, score
from wfcli.engine.finite import Finite
from wfcli.engine.hooks import Hooks
from wfcli.engine.lineup import Bench, ask, load_model
from wfcli.engine.made import Made, make
from wfcli.engine.merging import check_method, image_counts, settle
from wfcli.engine.recipe import recipe_of
from wfcli.engine.situation import Situation
from wfcli.engine.student import join
from wfcli.errors import DataError, WfError, out_of_memory

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig

BEST = "best single"  # a copy of the best teacher
LEAST_LABELLED = 50  # validation images: with fewer there are no two halves
# Cheap ones first: what only reads the weights, what looks at images, what learns by gradients.
ORDER = (
    "soup", "aligned-soup", "repair", "fedavg", "distance", "slerp", "karcher", "model-stock", "task-arithmetic",
    "ties", "dare", "weightformer", "least-squares", "greedy", "regmean", "fisher", "learned-soup", "adamerging",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One student that was tried; accuracies 0..1, None where it was not made."""

    method: str
    validation: float | None  # top-1 on the images that were chosen by
    test: float | None  # on the split that is reported; None also where there is none
    nll: float | None  # on the former
    seconds: float  # to make it
    memory: int | None  # most bytes in memory while it was made; None where the system does not say
    note: str = ""


@dataclass(frozen=True)
class Contest:
    """All that was tried, in that order; `chosen` by the images of the validation split, so many."""

    candidates: tuple[Candidate, ...]
    chosen: str
    images: int
    split: str  # of `Candidate.test`


@dataclass(frozen=True)
class Judges:
    """The images of a contest, and a net to fill with weights."""

    bench: Bench
    blank: torch.nn.Module
    labelled: Images | None  # to learn from
    validation: Images
    test: Images | None

    def score(self, state: dict[str, Tensor] | None, images: Images | None, stage: str) -> Scores | None:
        """Return how a net answers (timm's names)."""
        if state is None or images is None:
            return None
        answers = ask(self.bench, [load_model(self.blank, state, self.bench.device)], images, stage=stage)
        return score(answers.log_probs[0], answers.labels)


class _Apart:
    """Hooks that show how far a candidate is, and keep what it warns of."""

    def __init__(self, hooks: Hooks, method: str) -> None:
        self._hooks, self._method = hooks, method
        self.warnings: list[str] = []

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        self._hooks.progress(stage if stage == self._method else f"{self._method}: {stage}", done, total, **figures)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def choose(config: FuseConfig, situation: Situation, hooks: Hooks) -> tuple[Made, Contest]:
    """Try the methods, and return the student of the best on validation images, and all that was found."""
    judges = open_judges(config, situation, hooks)
    best: tuple[Candidate, Made, dict[str, Tensor]] | None = None
    candidates = []
    for candidate, made, student in contest(config, situation, judges, hooks):
        candidates.append(candidate)
        if made is not None and student is not None and (best is None or rank(candidate) > rank(best[0])):
            best = candidate, made, student  # the others go
    assert best is not None  # the best teacher, if nothing else
    chosen, made, student = best
    tried = [c.method for c in candidates if c.validation is not None]
    made.record["auto"] = {"tried": tried, "validation_images": len(judges.validation)}
    made.record["recipe"] = recipe_of(config)
    result = Contest(tuple(candidates), chosen.method, len(judges.validation), config.split)
    return replace(made, tensors=iter(student.items())), result


def contest(
    config: FuseConfig, situation: Situation, judges: Judges, hooks: Hooks
) -> Iterator[tuple[Candidate, Made | None, dict[str, Tensor] | None]]:
    """Make the candidates one after the other, each judged; with the student (file's names), where there is one."""
    started = time.perf_counter()
    yield _best_single(config, situation, judges, hooks)
    for method in possible(config, situation):
        if config.time_budget is not None and time.perf_counter() - started > config.time_budget:
            yield Candidate(method, None, None, None, 0.0, None, "no time left"), None, None
            continue
        if METHODS[method].align and situation.alignment is None:
            note = "the teachers share a base: none is brought into another frame"
            yield Candidate(method, None, None, None, 0.0, None, note), None, None
            continue
        own = _Apart(hooks, method)
        begun, memory = time.perf_counter(), PeakMemory()
        options = replace(config, method=method, base=config.base if METHODS[method].base else None)
        try:
            check_method(options)
            made = make(options, settle(options, situation.teachers), situation, own, judges.labelled)
            student = join(made.tensors)
        except (WfError, RuntimeError, MemoryError) as error:  # one that cannot be made does not end the others
            told = error if isinstance(error, WfError) else out_of_memory(error)
            if told is None and not isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                raise
            note = str(error if told is None else told.problems[0])
            yield Candidate(method, None, None, None, time.perf_counter() - begun, memory.read(), note), None, None
            continue
        seconds, peak = time.perf_counter() - begun, memory.read()
        if made.record["method"] != method:  # no generator fits, or its student was broken
            note = own.warnings[0] if own.warnings else "the soup"
            yield Candidate(method, None, None, None, seconds, peak, note), None, None
            continue
        yield _judged(method, situation, judges, made, student, seconds, peak, own)


def possible(config: FuseConfig, situation: Situation) -> list[str]:
    """Return the methods that these teachers, base and images allow, cheap ones first."""
    assert config.data is not None
    learning = config.unlabelled is not None or "train" in available_splits(config.data)
    wanted = [name for name in ORDER if not config.methods or name in config.methods]
    if not config.methods:
        counted = None not in image_counts(situation.teachers)
        wanted = [name for name in wanted if name != "fedavg" or counted]
        moved = situation.alignment is not None
        wanted = [name for name in wanted if (not moved if name == "soup" else moved or not METHODS[name].align)]
        wanted = [name for name in wanted if name != "slerp" or len(situation.checked) == 2]
        wanted = [name for name in wanted if METHODS[name].base != "must" or config.base is not None]
        wanted = [name for name in wanted if not METHODS[name].data or learning]
    return wanted


def open_judges(config: FuseConfig, situation: Situation, hooks: Hooks) -> Judges:
    """Load the images to learn from, to judge by and to report on.

    Raises:
        DataError: too few validation images for methods that learn from labels.
    """
    assert config.data is not None
    settings = input_config(config.architecture)
    bench = Bench(settings, situation.device, config.batch_size, hooks)
    validation, labelled = load_images(config.data, "validation", settings.size), None
    if any(METHODS[name].data == "labels" for name in possible(config, situation)):
        if len(validation) < 2 * LEAST_LABELLED:
            raise DataError(
                f"data {config.data.source}: got {len(validation)} validation images, expected {2 * LEAST_LABELLED}: "
                "half of them to learn from, half to judge by",
                hint="--methods soup,weightformer, say, leaves out those that learn from labels",
            )
        order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(config.seed))
        first, second = order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values
        labelled, validation = validation.subset(first), validation.subset(second)
    test = load_images(config.data, config.split, settings.size) if config.split != "validation" else None
    blank = build_model(config.architecture, situation.teachers.num_classes)
    return Judges(bench, blank, labelled, validation, test)


def _best_single(
    config: FuseConfig, situation: Situation, judges: Judges, hooks: Hooks
) -> tuple[Candidate, Made, dict[str, Tensor]]:
    """Judge all teachers, and copy the best of them as it is, its own frame and BatchNorm statistics with it."""
    teachers, begun, memory = situation.teachers, time.perf_counter(), PeakMemory()
    ranks = []
    for number in range(len(teachers.checkpoints)):
        view = dict(teachers.layout.timm_view(teachers.checkpoints[number]))
        found = judges.score(view, judges.validation, "judging the teachers")
        assert found is not None
        ranks.append((found.top1, _low(found.nll), -number))
    rule = ("*", "method", f"copy:{-max(ranks)[2]}")
    copied = replace(
        config,
        method="soup",
        rules=(rule,),
        generator=None,
        base=None,
        data=None,
        unlabelled=None,
    )
    as_it_was = replace(situation, checked=[Finite(checkpoint) for checkpoint in teachers.checkpoints], alignment=None)
    made = make(copied, settle(copied, teachers), as_it_was, hooks)
    student = join(made.tensors)
    made.record["method"] = BEST
    own = _Apart(hooks, BEST)
    return _judged(BEST, situation, judges, made, student, time.perf_counter() - begun, memory.read(), own)


def _judged(
    method: str,
    situation: Situation,
    judges: Judges,
    made: Made,
    student: dict[str, Tensor],
    seconds: float,
    memory: int | None,
    own: _Apart,
) -> tuple[Candidate, Made, dict[str, Tensor]]:
    view = dict(situation.teachers.layout.timm_view(student))
    found = judges.score(view, judges.validation, f"judging {method}")
    told = judges.score(view, judges.test, f"judging {method}")
    assert found is not None
    note = "; ".join(own.warnings)
    test = None if told is None else told.top1
    return Candidate(method, found.top1, test, -_low(found.nll), seconds, memory, note), made, student


def _low(nll: float) -> float:
    return -math.inf if math.isnan(nll) else -nll


def rank(candidate: Candidate) -> tuple[float, float]:
    """Return what candidates are chosen by: top-1 on validation images, and among equals the loss."""
    assert candidate.validation is not None
    assert candidate.nll is not None
    return candidate.validation, -candidate.nll
