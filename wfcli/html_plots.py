"""Figures -> SVG that stands inside a page and takes its colours, light or dark. By matplotlib, an extra.

matplotlib draws in colours that stand for variables of `report.css`; the names are put in afterwards. Widths are those
of a phone: the writing is as large there as the text around it.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from wfcli.html_page import escape, printable
from wfcli.units import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wfcli.core.metrics import Bin
    from wfcli.engine.pictures import Line

INK, DIM, GRID = "#fe0001", "#fe0002", "#fe0003"
SERIES = tuple(f"#fe001{number}" for number in range(6))
VARIABLES = {INK: "--ink", DIM: "--dim", GRID: "--line", **{colour: f"--s{n}" for n, colour in enumerate(SERIES)}}
MARKERS = ("o", "D", "s", "^", "v", "P", "X")  # no two of so many series have colour and marker in common
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
WIDTH = 4.3  # inches
STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # which comes with matplotlib: the same layout everywhere
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a dollar
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "wfcli",  # the same figures give the same bytes
}
MOST_NUMBERED = 9  # nets in a matrix whose cells have room for a number
MOST_TICKS = 14
MOST_ROWS = 30  # of a matrix that have a name
MOST_COLOURED = 6  # teachers


@dataclass(frozen=True)
class Dot:
    """One line of a picture of levels; shares 0..1. `series` says in which colour and with which marker."""

    name: str
    level: float
    low: float | None
    high: float | None
    series: int
    gap: bool = False  # some room above it


def short(name: str, most: int = 24) -> str:
    """Return a name without its suffix that fits a picture: the beginning and the end of a long one."""
    name = printable(name.removesuffix(".safetensors"))
    head = 2 * most // 3  # where numbered names differ
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}"


def levels(dots: Sequence[Dot], mark: float | None, axis: str, key: str, label: str) -> str:
    """Draw shares with their intervals, one below the other; `mark` is a line across all."""
    places: list[float] = []
    for dot in dots:
        places.append((places[-1] + 1 if places else 0) + 0.6 * dot.gap)

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        if mark is not None:
            axes.axvline(100 * mark, color=DIM, linewidth=1, linestyle=DASHES[1])
        for dot, place in zip(dots, places, strict=True):
            colour, marker = SERIES[dot.series], MARKERS[dot.series]
            if dot.low is not None and dot.high is not None:
                axes.plot([100 * dot.low, 100 * dot.high], [place, place], color=colour, solid_capstyle="butt")
            axes.plot(100 * dot.level, place, marker, color=colour, markersize=6)
            axes.annotate(
                percent(dot.level, 1), (1, place), (3, 0), ("axes fraction", "data"), "offset points", va="center"
            )
        axes.set_yticks(places, [short(dot.name) for dot in dots])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(places[-1] + 0.7, -0.7)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(axis)

    return _draw(fill, 0.75 + 0.27 * (places[-1] + 1), key, label)


def reliability(nets: Sequence[tuple[str, str, int, Sequence[Bin]]], key: str, label: str) -> str:
    """Draw accuracy against confidence for each net (name, a line below it, series, bins), two beside each other."""
    rows = -(-len(nets) // 2)

    def fill(figure: Figure) -> None:
        panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat
        for (name, below, series, bins), axes in zip(nets, panels, strict=False):  # takes no panel without a net
            images = sum(one.images for one in bins)
            axes.plot([0, 100], [0, 100], color=DIM, linewidth=1, linestyle=DASHES[1])
            for one in bins:
                low, high = one.top1_ci
                x = 100 * one.confidence
                axes.plot([x, x], [100 * low, 100 * high], color=SERIES[series], linewidth=1)
                size = 2.5 + 6.5 * math.sqrt(one.images / images)
                axes.plot(x, 100 * one.top1, MARKERS[series], color=SERIES[series], markersize=size)
            axes.set_title(f"{short(name, 20)}\n{below}")
            axes.set(xlim=(0, 103), ylim=(0, 103), aspect="equal", xticks=[0, 50, 100], yticks=[0, 50, 100])
        for axes in islice(panels, 2 * rows - len(nets)):
            axes.set_visible(False)
        figure.supxlabel("confidence, %", fontsize=10.5)
        figure.supylabel("right, %", fontsize=10.5)

    return _draw(fill, 0.5 + 2.25 * rows, key, label)


def matrix(
    names: Sequence[str], shares: Sequence[Sequence[float]], series: int, diagonal: bool, key: str, label: str
) -> str:
    """Draw shares of each two nets as a matrix: the deeper the colour, the more. Without `diagonal` it stays empty."""
    count = len(names)
    shown = [shares[i][j] for i in range(count) for j in range(count) if diagonal or i != j]
    low, high = (0.0 if diagonal else min(shown)), max(shown)

    def fill(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for i in range(count):
            for j in range(count):
                if i == j and not diagonal:
                    continue
                depth = 0.06 + 0.44 * (shares[i][j] - low) / (high - low or 1)
                look: dict[str, Any] = {
                    "facecolor": SERIES[series],
                    "alpha": round(depth, 3),
                    "linewidth": 0,
                    "antialiased": False,
                }
                axes.add_patch(Rectangle((j, i), 1, 1, **look))
                if count <= MOST_NUMBERED:
                    text = percent(shares[i][j], 1 if high < 0.0995 else 0)
                    axes.text(j + 0.5, i + 0.5, text, ha="center", va="center")
        across, down = (range(0, count, -(-count // most)) for most in (10, MOST_ROWS))
        axes.set_xticks([place + 0.5 for place in across], [str(place + 1) for place in across])
        axes.set_yticks([place + 0.5 for place in down], [f"{short(names[p], 18)}  {p + 1}" for p in down])
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(0, count), ylim=(count, 0))

    return _draw(fill, 0.35 + max(0.34 * min(count, 11), 0.2 * min(count, MOST_ROWS)), key, label)


def lines(found: Sequence[Line], key: str, label: str) -> str:
    """Draw loss and accuracy along lines between nets, one below the other."""

    def fill(figure: Figure) -> None:
        loss, right = figure.subplots(2, 1, sharex=True)
        for number, one in enumerate(found):
            style = _style(number, len(one.shares))
            x = [100 * share for share in one.shares]
            loss.plot(x, one.nll, label=_label(f"{short(one.start, 21)} → {short(one.end, 21)}"), **style)
            right.plot(x, [100 * share for share in one.top1], **style)
        loss.set_ylabel("loss (NLL, nats)")
        loss.set_ylim(bottom=0)
        right.set_ylabel("top-1, %")
        right.set_xlabel("share of the second net, %")
        figure.legend(loc="outside lower left")

    return _draw(fill, 3.9 + 0.19 * len(found), key, label)


def mixing(
    layers: Sequence[str], teachers: Sequence[str], weights: Sequence[Sequence[float]], key: str, label: str
) -> str:
    """Draw the weight of every teacher in every layer; weights [layers][teachers]. A few stand out in colour."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(100 / len(teachers), color=DIM, linewidth=1, linestyle=DASHES[1])
        far = sorted(range(len(teachers)), key=lambda t: -max(abs(row[t] - 1 / len(teachers)) for row in weights))
        for number in far[MOST_COLOURED:]:
            axes.plot(range(len(layers)), [100 * row[number] for row in weights], color=DIM, linewidth=0.6)
        for series, number in enumerate(sorted(far[:MOST_COLOURED])):
            shares, name = [100 * row[number] for row in weights], _label(short(teachers[number], 17))
            axes.plot(range(len(layers)), shares, label=name, **_style(series, len(layers)))
        step = -(-len(layers) // MOST_TICKS)
        axes.set_xticks(range(0, len(layers), step), [short(name, 16) for name in layers[::step]], rotation=90)
        axes.set_ylabel("weight, %")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower left", ncols=2)

    return _draw(fill, 3.4 + 0.19 * -(-min(len(teachers), MOST_COLOURED) // 2), key, label)


def curves(
    steps: Sequence[float],
    found: Sequence[tuple[str, Sequence[float], int, bool]],
    mark: float | None,
    axis: str,
    key: str,
    label: str,
) -> str:
    """Draw curves (name, values, series, whether it is a baseline: dashed) over the steps; `mark`: a step apart."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        if mark is not None:
            axes.axvline(mark, color=DIM, linewidth=1, linestyle=DASHES[2])
        for name, values, series, baseline in found:
            style = _style(series, len(steps))
            style |= {"marker": "", "linestyle": DASHES[1]} if baseline else {"linestyle": "-"}
            axes.plot(steps, values, label=name, **style)
        axes.set_xlabel("step")
        axes.set_ylabel(axis)
        if len(found) > 1:
            figure.legend(loc="outside lower left", ncols=2)

    return _draw(fill, 2.9, key, label)


def _label(name: str) -> str:
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves such names out of a legend


def _style(number: int, points: int) -> dict[str, Any]:
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markevery": -(-points // 25),
    }


def _draw(fill: Callable[[Figure], None], height: float, key: str, label: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's font has what matplotlib's lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        fill(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inline(written.getvalue(), key, label)


def _own_names(tag: str, key: str) -> str:
    tag = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{key}-", tag).replace("xlink:href", "href")
    return re.sub(r"#fe00[01]\d", lambda found: f"var({VARIABLES[found[0]]})", tag)


def _inline(svg: str, key: str, label: str) -> str:
    """Make a file of matplotlib's a part of a page: no names that another has, no size of its own, colours by name."""
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _own_names(tag[0], key), body)  # what stands between tags are names of nets
    body = body.replace("'DejaVu Sans'", "system-ui, sans-serif")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(label)}">{body.rstrip()}'
