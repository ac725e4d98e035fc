"""What the pictures of a report show: measured only where one is asked for.

N nets side by side, B images, C classes. Shares are 0..1, losses in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wfcli.core.calibrate import has_batchnorm
from wfcli.core.checkpoint import Checkpoint
from wfcli.core.data import Images, available_splits, load_images
from wfcli.core.lines import SHARES, between
from wfcli.core.metrics import Agreement, Bin, agreement, reliability, score
from wfcli.engine.hooks import Silent
from wfcli.engine.lineup import Answers, Bench, Entry, Kind, ask, calibrate_model, load_model
from wfcli.engine.provenance import described

if TYPE_CHECKING:
    from wfcli.engine.evaluate import EvaluateConfig

LINE_IMAGES = 1000  # that the loss along a line is measured on, at most
LINE_CALIBRATION = 1000  # training images for the statistics of its nets, at most


@dataclass(frozen=True)
class Net:
    """A net in a picture; the weights of one on disk by timm's names, and its file."""

    name: str
    kind: Kind
    state: Mapping[str, Tensor]
    file: Checkpoint


@dataclass(frozen=True)
class File:
    """A file that the report is about."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Reliability:
    """How sure a net is, and how often it is right then."""

    name: str
    kind: Kind
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Agreements:
    """What each two of the nets have in common; `shares` in the order of the names."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    shares: Agreement


@dataclass(frozen=True)
class Line:
    """Loss and accuracy at every share of `end` in the straight line from `start`."""

    start: str
    end: str
    shares: tuple[float, ...]
    nll: tuple[float, ...]
    top1: tuple[float, ...]


@dataclass(frozen=True)
class Lines:
    """The lines between some nets, on so many images of the split.

    `calibrated`: training images that gave each of their nets its BatchNorm statistics; 0: mixed as weights are; None:
    the nets have none. `aligned`: whether the teachers were brought into one frame before.
    """

    images: int
    calibrated: int | None
    aligned: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Pictures:
    """All that the pictures of a comparison show; `data` without folders."""

    data: str
    files: tuple[File, ...]
    reliability: tuple[Reliability, ...]
    agreement: Agreements | None  # of two nets at least
    lines: Lines | None  # None: there are no two ends


def take_pictures(
    bench: Bench,
    blank: nn.Module,
    config: EvaluateConfig,
    entries: Sequence[Entry],
    answers: Answers,
    nets: Sequence[Net],
    ends: Sequence[Net],
    aligned: bool,
) -> Pictures:
    """Look at the answers of all entries and, where there was one, of the ensemble; and along lines between the ends.

    `nets`: those that are files. `ends`: two or three of them; each is joined with each.

    Raises:
        DataError: images cannot be read.
    """
    asked = list(_asked(entries, answers))
    return Pictures(
        data=described(config.data),
        files=tuple(File(net.name, net.file.digest()) for net in nets),
        reliability=tuple(Reliability(name, kind, reliability(said, answers.labels)) for name, kind, said in asked),
        agreement=_agreements(asked, answers.labels) if len(asked) > 1 else None,
        lines=_lines(bench, blank, config, ends, aligned) if len(ends) > 1 else None,
    )


def _asked(entries: Sequence[Entry], answers: Answers) -> Iterator[tuple[str, Kind, Tensor]]:
    """Yield name, kind and log probabilities [B, C] in the order of the table: the ensemble behind the teachers."""
    pending = answers.ensemble
    for entry, said in zip(entries, answers.log_probs, strict=True):
        if pending is not None and entry.kind != "teacher":
            yield "ensemble", "ensemble", pending
            pending = None
        yield entry.name, entry.kind, said
    if pending is not None:
        yield "ensemble", "ensemble", pending


def _agreements(asked: Sequence[tuple[str, Kind, Tensor]], labels: Tensor) -> Agreements:
    names, kinds, said = zip(*asked, strict=True)
    return Agreements(names, kinds, agreement(said, labels))


def _lines(bench: Bench, blank: nn.Module, config: EvaluateConfig, ends: Sequence[Net], aligned: bool) -> Lines:
    """Measure the nets on the lines, each end once; their statistics as those of the calibrated soup."""
    data, size, seed = config.data, bench.settings.size, config.seed
    images = load_images(data, config.split, size, limit=LINE_IMAGES, seed=seed)
    training: Images | None = None
    if has_batchnorm(blank) and config.calibration_images and "train" in available_splits(data):
        training = load_images(data, "train", size, limit=min(LINE_CALIBRATION, config.calibration_images), seed=seed)
    pairs = list(combinations(ends, 2))
    total, done = len(ends) + len(pairs) * (len(SHARES) - 2), 0
    quiet = Bench(bench.settings, bench.device, bench.batch_size, Silent())  # one bar for all of them

    def figures(state: Mapping[str, Tensor]) -> tuple[float, float]:
        nonlocal done
        model = load_model(blank, state, bench.device)
        if training is not None:
            calibrate_model(quiet, model, training, seed, "")
        answers = ask(quiet, [model], images, stage="")
        scores = score(answers.log_probs[0], answers.labels)
        done += 1
        bench.hooks.progress("looking along lines", done, total)
        return scores.nll, scores.top1

    bench.hooks.progress("looking along lines", 0, total)
    at_ends = {id(end): figures(end.state) for end in ends}
    found = []
    for start, end in pairs:
        inside = [figures(between(start.state, end.state, share)) for share in SHARES[1:-1]]
        nll, top1 = zip(at_ends[id(start)], *inside, at_ends[id(end)], strict=True)
        found.append(Line(start.name, end.name, SHARES, nll, top1))
    calibrated = (len(training) if training is not None else 0) if has_batchnorm(blank) else None
    return Lines(len(images), calibrated, aligned, tuple(found))
