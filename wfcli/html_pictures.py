"""Which pictures a result has: each with a sentence on how to read it, and with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wfcli import html_plots as plots
from wfcli.html_page import Picture, numbers_table
from wfcli.html_plots import Dot
from wfcli.report import row_name
from wfcli.units import percent

if TYPE_CHECKING:
    from wfcli.engine.compare import CompareResult
    from wfcli.engine.draws import Summary
    from wfcli.engine.evaluate import Comparison, Row
    from wfcli.engine.pictures import Agreements, Lines, Reliability
    from wfcli.engine.train_generator import TrainGeneratorResult

TEACHER, OWN, BASELINE = range(3)  # colour and marker of a row: as in the stylesheet's tiles
MOST_RELIABILITY = 4
FIRST = ("checkpoint", "ensemble", "calibrated_soup", "soup", "teacher")  # whose reliability is shown first


def of_comparison(comparison: Comparison) -> list[Picture]:
    """Return the pictures of a comparison: accuracies always, the others where they were measured."""
    found = [_accuracies(comparison)] if comparison.rows else []
    taken = comparison.pictures
    if taken is None:
        return found
    names = _names(comparison.rows)
    if any(one.bins for one in taken.reliability):  # none where no answer is a number
        found.append(_reliability(taken.reliability, comparison, names))
    if taken.agreement is not None:
        found += _agreement(taken.agreement, names)
    if taken.lines is not None:
        found.append(_lines(taken.lines))
    return found


def _names(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return kind and name of a row -> what the table calls it."""
    every = {row.name for row in rows}
    return {(row.kind, row.name): row_name(row, every).plain for row in rows}


def _series(kind: str) -> int:
    return TEACHER if kind in ("teacher", "best") else OWN if kind == "checkpoint" else BASELINE


def _accuracies(comparison: Comparison) -> Picture:
    rows, names = comparison.rows, _names(comparison.rows)
    dots: list[Dot] = []
    before = None
    for row in rows:
        series = _series(row.kind)
        low, high = (None, None) if row.kind == "mean" else row.top1_ci  # of a mean it is no interval
        part = row.kind if row.kind in ("teacher", "checkpoint") else "baseline"
        dots.append(Dot(names[row.kind, row.name], row.top1, low, high, series, bool(dots) and part != before))
        before = part
    best = next((row.top1 for row in rows if row.kind == "best"), None)
    how = "Farther right is better. Where two bars overlap widely, so many images do not tell the nets apart."
    how += " The dashed line is the best teacher." if best is not None else ""
    label = "Accuracy: " + "; ".join(f"{dot.name} {percent(dot.level, 1)} %" for dot in dots)
    numbers = [
        (dot.name, percent(dot.level), "" if dot.low is None else f"{percent(dot.low)}–{percent(dot.high or 0)}")
        for dot in dots
    ]
    return Picture(
        "Accuracy with 95 % intervals",
        how,
        plots.levels(dots, best, "top-1, %", "accuracy", label),
        numbers_table(("", "top-1 %", "95 %"), numbers),
    )


def _reliability(found: Sequence[Reliability], comparison: Comparison, names: Mapping[tuple[str, str], str]) -> Picture:
    ece = {(row.kind, row.name): row.ece for row in comparison.rows}
    best = [one for one in found if one.kind == "teacher" and one.name == comparison.best]
    order = sorted((one for one in found if one not in best), key=lambda one: FIRST.index(one.kind))
    where = next((place for place, one in enumerate(order) if one.kind == "teacher"), len(order))
    order[where:where] = best  # before the other teachers
    shown = [one for one in order[:MOST_RELIABILITY] if one.bins]
    below = [f"ECE {percent(ece[one.kind, one.name], 1)} %" for one in shown]
    left = f" Shown are {len(shown)} of {len(found)} nets; the numbers have all." if len(shown) < len(found) else ""
    how = (
        "On the diagonal a net is right as often as it is sure; below it, it is too sure. Large dots hold many images."
    )
    rows = [
        (names[one.kind, one.name], f"{percent(each.low, 0)}–{percent(each.high, 0)}", f"{each.images:,}",
         percent(each.confidence, 1), percent(each.top1, 1),
         "–".join(percent(end, 1) for end in each.top1_ci))
        for one in order for each in one.bins
    ]  # fmt: skip
    panels = [
        (names[one.kind, one.name], text, _series(one.kind), one.bins) for one, text in zip(shown, below, strict=True)
    ]
    label = "Reliability: " + "; ".join(f"{name}, {text}" for name, text, *_ in panels)
    return Picture(
        "Reliability: can its confidence be believed?",
        how + left,
        plots.reliability(panels, "reliability", label),
        numbers_table(("", "bin %", "images", "confidence %", "right %", "95 %"), rows),
    )


def _agreement(found: Agreements, names: Mapping[tuple[str, str], str]) -> list[Picture]:
    called = [names[kind, name] for kind, name in zip(found.kinds, found.names, strict=True)]
    heads = ("", *(str(place + 1) for place in range(len(called))))

    def numbers(shares: Sequence[Sequence[float]]) -> str:
        rows = [(f"{place + 1} {name}", *(percent(x, 1) for x in shares[place])) for place, name in enumerate(called)]
        return numbers_table(heads, rows)

    same, wrong = found.shares.same, found.shares.both_wrong
    return [
        Picture(
            "Equal answers",
            "How many % of the images two nets answer alike, right or wrong. Nets that agree less have more to give "
            "each other.",
            plots.matrix(called, same, TEACHER, False, "same", _pairs("Equal answers", called, same)),
            numbers(same),
        ),
        Picture(
            "Errors in common",
            "How many % of the images both nets get wrong; on the diagonal a net's own errors. What all get wrong, "
            "no ensemble mends.",
            plots.matrix(called, wrong, OWN, True, "wrong", _pairs("Errors in common", called, wrong)),
            numbers(wrong),
        ),
    ]


def _pairs(what: str, names: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    pairs = [(shares[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    (low, *least), (high, *most) = min(pairs), max(pairs)
    return f"{what}: from {percent(low, 1)} % ({' and '.join(least)}) to {percent(high, 1)} % ({' and '.join(most)})"


def _lines(found: Lines) -> Picture:
    how = "Low all the way: one basin, and the nets may be averaged. A hill between them: they may not. "
    how += f"On {found.images:,} images"
    if found.calibrated:
        how += f", BatchNorm statistics of every net, the ends too, anew from {found.calibrated:,} training images"
    elif found.calibrated == 0:
        how += ", BatchNorm statistics mixed as weights are, which raises the middle"
    how += "; the teachers brought into one frame." if found.aligned else "; the nets as they are on disk."
    rows = [
        (f"{one.start} → {one.end}", f"{100 * share:.0f}", f"{nll:.3f}", percent(top1))
        for one in found.lines
        for share, nll, top1 in zip(one.shares, one.nll, one.top1, strict=True)
    ]
    label = "Loss along lines: " + "; ".join(
        f"{one.start} to {one.end}: {one.nll[0]:.2f} and {one.nll[-1]:.2f} at the ends, at most {max(one.nll):.2f}"
        for one in found.lines
    )
    return Picture(
        "Along straight lines between nets",
        how,
        plots.lines(found.lines, "lines", label),
        numbers_table(("line", "share of the second %", "NLL", "top-1 %"), rows),
    )


def of_mixing(mixing: Mapping[str, Sequence[float]], teachers: Sequence[str], method: str) -> Picture:
    """Return the picture of what weight a generator gave each teacher, layer by layer."""
    layers, weights = list(mixing), [mixing[layer] for layer in mixing]
    rows = [(layer, *(percent(share, 1) for share in mixing[layer])) for layer in layers]
    spread = max(weights, key=lambda row: max(row) - min(row))
    layer = layers[weights.index(spread)]
    more = " Coloured are those that go farthest from it." if len(teachers) > plots.MOST_COLOURED else ""
    label = f"Mixing weights: most uneven in {layer}, from {percent(min(spread), 1)} to {percent(max(spread), 1)} %"
    return Picture(
        "Whose weights the student has, layer by layer",
        f"The mean weight that the generator ({method}) gives the rows of each teacher. The dashed line is the soup: "
        f"all alike. From left to right as the net runs.{more}",
        plots.mixing(layers, teachers, weights, "mixing", label),
        numbers_table(("layer", *(f"{name.removesuffix('.safetensors')} %" for name in teachers)), rows),
    )


def of_methods(result: CompareResult) -> list[Picture]:
    """Return a picture for each number of teachers: the accuracy of every method."""
    return [_methods(result, count) for count in dict.fromkeys(one.count for one in result.summary)]


def _methods(result: CompareResult, count: int) -> Picture:
    found = [one for one in result.summary if one.count == count and one.made == one.draws]
    left = [one.method for one in result.summary if one.count == count and one.made != one.draws]
    dots = [_dot(one) for one in found]
    single = next((one for one in found if one.method == "best single"), None)
    draws = max((one.draws for one in found), default=0)
    how = f"Mean top-1 over {draws} draw{'s' * (draws != 1)} of {count} teachers"
    how += ", with the 95 % interval of the mean (Student's t)." if any(one.half is not None for one in found) else "."
    how += " The dashed line is the best single teacher." if single is not None else ""
    how += f" Not made in every draw, and left out: {', '.join(left)}." if left else ""
    rows = [
        (dot.name, percent(dot.level), "" if dot.low is None else f"{percent(dot.low)}–{percent(dot.high or 0)}")
        for dot in dots
    ]
    label = f"Methods, {count} teachers: " + "; ".join(f"{dot.name} {percent(dot.level, 1)} %" for dot in dots)
    mark = None if single is None else _level(single)
    return Picture(
        f"Every method, K = {count}",
        how,
        plots.levels(dots, mark, f"top-1, {result.split} split, %", f"methods{count}", label),
        numbers_table(("", "top-1 %", "95 %"), rows),
    )


def _level(one: Summary) -> float:
    level = one.test if one.test is not None else one.validation
    assert level is not None  # it was made in every draw
    return level


def _dot(one: Summary) -> Dot:
    level = _level(one)
    series = OWN if one.method == "auto" else TEACHER if one.method in ("best single", "mean single") else BASELINE
    low, high = (None, None) if one.half is None else (level - one.half, level + one.half)
    return Dot(one.method, level, low, high, series)


def of_training(result: TrainGeneratorResult) -> list[Picture]:
    """Return the curves of a training: accuracy on held-out teachers beside their soup, and the loss."""
    history = result.history
    steps = [row["step"] for row in history]
    keys = {
        "data-free": "data_free", "soup, data-free": "soup_data_free",
        "calibrated": "calibrated", "soup, calibrated": "soup_calibrated",
    }  # fmt: skip
    found = [
        (
            name,
            [100 * row[key] for row in history],
            OWN if key.endswith("data_free") else TEACHER,
            key.startswith("soup"),
        )
        for name, key in keys.items()
    ]
    best = next(row for row in history if row["step"] == result.best_step)
    label = f"Held out: from {percent(history[0]['data_free'], 1)} % to {percent(best['data_free'], 1)} % data-free, "
    label += f"from {percent(history[0]['calibrated'], 1)} % to {percent(best['calibrated'], 1)} % calibrated"
    shown = [
        Picture(
            "Students of held-out teachers",
            "Top-1 on validation images. Dashed: the soup, which an untrained generator gives; what lies above it was "
            f"learned. The dotted line is the step that was kept, {result.best_step:,}.",
            plots.curves(steps, found, result.best_step, "top-1, %", "heldout", label),
            numbers_table(
                ("step", *(f"{name} %" for name in keys), "over the soup, points"),
                [
                    (f"{row['step']:,.0f}", *(percent(row[key]) for key in keys.values()), f"{100 * row['gain']:+.2f}")
                    for row in history
                ],
            ),
        )
    ]
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    if losses:
        at, values = zip(*losses, strict=True)
        label = f"Training loss: {values[0]:.3f} at step {at[0]:,.0f}, {values[-1]:.3f} at step {at[-1]:,.0f}"
        shown.append(
            Picture(
                "Training loss",
                "Mean since the point before: distillation from the teachers' votes, and cross entropy. Every step has "
                "other teachers and images, which makes it rough.",
                plots.curves(at, [("loss", values, TEACHER, False)], None, "loss, nats", "loss", label),
                numbers_table(("step", "loss"), [(f"{step:,.0f}", f"{loss:.4f}") for step, loss in losses]),
            )
        )
    return shown
