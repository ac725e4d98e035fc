"""The rows of a comparison: answers to figures, and the baselines that are made from the teachers' rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import Tensor

from wfcli.core.metrics import score
from wfcli.engine.lineup import Answers, Bench, Entry, Kind
from wfcli.engine.pictures import Pictures


@dataclass(frozen=True)
class Row:
    """One line of the comparison: accuracies and errors 0..1, size in bytes; `delta_best` from the best teacher."""

    name: str
    kind: Kind
    top1: float
    top1_ci: tuple[float, float]
    delta_best: float | None
    nll: float
    ece: float
    parameters: int
    size: int
    images_per_second: float
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The rows, and on what they were measured. The teacher `best` was chosen on the split `best_chosen_on`."""

    rows: tuple[Row, ...]
    architecture: str
    data: str
    split: str
    images: int
    best: str | None
    best_chosen_on: str | None
    pictures: Pictures | None = None  # where they were asked for


def with_baselines(
    bench: Bench, answers: Answers, rows: Sequence[Row], count: int, best: Row, same_split: bool
) -> list[Row]:
    """Put mean, best and ensemble of the first `count` rows, the teachers, behind these; every row against the best."""
    assert answers.ensemble is not None
    singles = rows[:count]
    together = _scored(
        bench, answers.ensemble, answers.labels, "ensemble", "ensemble",
        parameters=sum(row.parameters for row in singles),
        size=sum(row.size for row in singles),
        seconds=sum(answers.seconds[:count]),
    )  # fmt: skip
    note = "chosen on the images of this table: there are no others to choose on" if same_split else ""
    chosen = replace(best, kind="best", note=note)
    complete = [*singles, _mean_row(singles), chosen, together, *rows[count:]]
    return [replace(row, delta_best=row.top1 - best.top1) for row in complete]


def row_of(bench: Bench, answers: Answers, place: int, entry: Entry) -> Row:
    return _scored(
        bench, answers.log_probs[place], answers.labels, entry.name, entry.kind,
        parameters=sum(parameter.numel() for parameter in entry.model.parameters()),
        size=entry.size,
        seconds=answers.seconds[place],
    )  # fmt: skip


def _scored(
    bench: Bench,
    log_probs: Tensor,
    labels: Tensor,
    name: str,
    kind: Kind,
    *,
    parameters: int,
    size: int,
    seconds: float,
) -> Row:
    scores = score(log_probs, labels)
    broken = int(log_probs.isnan().any(dim=1).sum())
    note = f"its outputs are not numbers for {broken} of {len(labels)} images" if broken else ""
    if broken:
        bench.hooks.warn(f"{name}: {note}")
    speed = len(labels) / max(seconds, 1e-9)
    return Row(name, kind, scores.top1, scores.top1_ci, None, scores.nll, scores.ece, parameters, size, speed, note)


def _mean_row(rows: Sequence[Row]) -> Row:
    """Return the mean over the teachers of every figure."""
    return Row(
        name="mean of the teachers",
        kind="mean",
        top1=fmean(row.top1 for row in rows),
        top1_ci=(fmean(row.top1_ci[0] for row in rows), fmean(row.top1_ci[1] for row in rows)),
        delta_best=None,
        nll=fmean(row.nll for row in rows),
        ece=fmean(row.ece for row in rows),
        parameters=rows[0].parameters,
        size=round(fmean(row.size for row in rows)),
        images_per_second=fmean(row.images_per_second for row in rows),
    )
