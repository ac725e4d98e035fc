"""Results -> one page: what the terminal shows, and the pictures a person would rather look at.

The tables are those of `report.py`. What a page shows was measured by the engine (`engine/pictures.py`); nothing is
computed here but the way to show it.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import wfcli
from wfcli import html_page as page
from wfcli import html_pictures as draw
from wfcli import report
from wfcli.core.outputs import atomic_path, check_page
from wfcli.errors import Problems, WfError
from wfcli.html_page import Tile
from wfcli.pipes import STDOUT
from wfcli.units import count, percent, points

if TYPE_CHECKING:
    from wfcli.engine.compare import CompareResult
    from wfcli.engine.evaluate import Comparison, Row
    from wfcli.engine.fuse import FuseResult
    from wfcli.engine.train_generator import TrainGeneratorResult

STUDENTS = 3  # that have tiles of their own
LOADED = "Nothing on this page is loaded from elsewhere."
FOOT = f"Accuracies are top-1; 95 % intervals are Wilson's, over images. {LOADED}"
OVER_DRAWS = (
    "Accuracies are top-1; 95 % intervals of methods are Student's t, over draws of teachers, those of single nets "
    f"Wilson's, over images. {LOADED}"
)


@dataclass(frozen=True)
class About:
    """What a result does not say: the command that gave it, without folders, and the day, as 2026-01-31."""

    command: str
    date: str


def today() -> str:
    """Return the date, or that of SOURCE_DATE_EPOCH, for pages whose bytes are to be the same again."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    zone = datetime.timezone.utc
    try:
        now = datetime.datetime.fromtimestamp(int(fixed), zone) if fixed.isdecimal() else datetime.datetime.now(zone)
    except (ValueError, OverflowError, OSError) as error:
        raise WfError(f"SOURCE_DATE_EPOCH: got {fixed[:20]}, expected seconds since 1970", hint="unset it") from error
    return now.date().isoformat()


def check_report(file: Path | None, made: Path | None = None) -> None:
    """Make sure, before anything is computed, that a report can be drawn and written, where one is wanted.

    `made` is the folder that the verb itself makes, and looks at.

    Raises:
        WfError: matplotlib is not installed, or SOURCE_DATE_EPOCH is no date.
        OutputError: the place cannot be written, or does not end in .html.
    """
    if file is None:
        return
    problems = Problems()
    with problems:
        today()
    with problems:
        if find_spec("matplotlib") is None:
            raise WfError("--report: matplotlib is not installed", hint="pip install 'wfcli[plot]', or leave it out")
    with problems:
        if made is None or made.exists() or file.parent != made:
            check_page(file)
    problems.raise_all()


def write_report(file: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


# Pages -------------------------------------------------------------------------------------------------------------


def evaluated(comparison: Comparison, about: About) -> str:
    """Write the page of `wfcli eval`."""
    shown = _plain(comparison)
    teachers = sum(row.kind == "teacher" for row in shown.rows)
    students = [row.name.removesuffix(".safetensors") for row in shown.rows if row.kind == "checkpoint"]
    named = ", ".join(students) if len(students) <= STUDENTS else f"{len(students)} checkpoints"
    title = " beside ".join([*([named] if named else []), *([f"{teachers} teachers"] if teachers else [])])
    body = page.tiles(_tiles(shown)) + page.section("Figures", page.drawn(report.compared(shown)))
    body += page.section("Pictures", page.pictures(draw.of_comparison(shown)))
    return page.page("wfcli eval", title, [_setting(shown)], body + _made(about, shown), FOOT)


def fused(result: FuseResult, about: About) -> str:
    """Write the page of `wfcli fuse --data`."""
    assert result.comparison is not None
    shown = replace(result, output=Path(result.output.name), comparison=_plain(result.comparison))
    assert shown.comparison is not None
    pictures = draw.of_comparison(shown.comparison)
    if shown.mixing:
        pictures.append(draw.of_mixing(shown.mixing, shown.teachers, shown.method))
    body = page.tiles(_tiles(shown.comparison)) + page.section("Figures", page.drawn(report.fused(shown)))
    body += page.section("Pictures", page.pictures(pictures))
    generator = [] if shown.generator is None else [(shown.generator, shown.generator_digest or "")]
    name = "student" if result.output == STDOUT else shown.output.stem
    title = f"{name}: {shown.method} of {len(shown.teachers)} teachers"
    setting = _setting(shown.comparison)
    return page.page("wfcli fuse", title, [setting], body + _made(about, shown.comparison, generator), FOOT)


def methods_compared(result: CompareResult, about: About) -> str:
    """Write the page of `wfcli compare`."""
    shown = replace(result, output=Path(result.output.name))
    teachers = None
    if shown.teachers is not None:
        teachers = _plain(shown.teachers)
        shown = replace(shown, data=teachers.data)
    body = page.tiles(_method_tiles(shown)) + page.section("Methods", page.drawn(report.methods_compared(shown)))
    body += page.section("Pictures of the methods", page.pictures(draw.of_methods(shown)))
    if teachers is not None:
        body += page.section("All teachers", page.drawn(report.compared(teachers)))
        body += page.section("Pictures of the teachers", page.pictures(draw.of_comparison(teachers)))
    counts = list(dict.fromkeys(one.count for one in shown.summary))
    title = f"Merge methods on {_either(counts)} teachers"
    setting = f"{shown.architecture} · {shown.data}, {shown.split} split"
    return page.page("wfcli compare", title, [setting], body + _made(about, teachers), OVER_DRAWS)


def generator_trained(result: TrainGeneratorResult, about: About) -> str:
    """Write the page of `wfcli train-generator`."""
    shown = replace(result, folder=Path(result.folder.name))
    best = next(row for row in shown.history if row["step"] == shown.best_step)
    tiles = [
        Tile("points over the soup", points(shown.gain), "held-out teachers, mean of both", kind="own"),
        *(
            Tile(name, f"{percent(best[key])} %", f"soup {percent(best[f'soup_{key}'])} %", kind="own")
            for name, key in (("data-free", "data_free"), ("calibrated", "calibrated"))
        ),
        Tile("parameters", count(shown.parameters), f"best step {shown.best_step:,} of {shown.steps:,}"),
    ]
    zoos = page.numbers_table(
        ("zoo", "architecture", "data", "classes", "teachers trained on", "held out"),
        [(one.name, one.architecture, one.data, one.classes, one.trained_on, one.held_out) for one in shown.zoos],
    )
    settings = page.short_terms((name, _said(value)) for name, value in shown.settings.items())
    body = page.tiles(tiles) + page.section("Figures", page.drawn(report.generator_trained(shown)))
    body += page.section("Pictures", page.pictures(draw.of_training(shown)))
    body += page.section("Zoos", zoos) + page.section("Settings", settings)
    title = f"A {shown.settings.get('preset', '')} generator from {len(shown.zoos)} zoo{'s' * (len(shown.zoos) != 1)}"
    architectures = ", ".join(dict.fromkeys(one.architecture for one in shown.zoos))
    made = _made(about, None, [(shown.folder.name, shown.digest)])
    return page.page("wfcli train-generator", title, [architectures], body + made, f"Accuracies are top-1. {LOADED}")


# Pieces ------------------------------------------------------------------------------------------------------------


def _plain(comparison: Comparison) -> Comparison:
    """Return it without folders."""
    return comparison if comparison.pictures is None else replace(comparison, data=comparison.pictures.data)


def _setting(comparison: Comparison) -> str:
    images = f"{comparison.images:,} images"
    return f"{comparison.architecture} · {comparison.data}, {comparison.split} split, {images}"


def _tiles(comparison: Comparison) -> list[Tile]:
    rows = comparison.rows
    students = [row for row in rows if row.kind == "checkpoint"]
    calibrated = any(row.kind == "calibrated_soup" for row in rows)
    baselines = [row for row in rows if row.kind in ("best", "ensemble", "calibrated_soup" if calibrated else "soup")]
    return [*(_tile(row, "own") for row in students[:STUDENTS]), *(_tile(row, _side(row)) for row in baselines)]


def _side(row: Row) -> str:
    return "teacher" if row.kind == "best" else "baseline"


def _tile(row: Row, kind: str) -> Tile:
    low, high = row.top1_ci
    name = "best teacher" if row.kind == "best" else row.name.removesuffix(".safetensors")
    beside = "" if row.delta_best is None or row.kind == "best" else f"{points(row.delta_best)} vs best teacher"
    return Tile(name, f"{percent(row.top1)} %", f"95 %: {percent(low, 1)}–{percent(high, 1)}", beside, kind)


def _method_tiles(result: CompareResult) -> list[Tile]:
    most = max(one.count for one in result.summary)
    kinds = {"auto": "own", "best single": "teacher", "ensemble": "baseline", "soup": "baseline"}
    found = {one.method: one for one in result.summary if one.count == most and one.test is not None}
    return [
        Tile(
            f"{name}, K = {most}",
            f"{percent(one.test or 0.0)} %",
            "one draw" if one.half is None else f"± {percent(one.half)}, {one.made} draws",
            kind=kind,
        )
        for name, kind in kinds.items()
        if (one := found.get(name)) is not None
    ]


def _made(about: About, comparison: Comparison | None, others: Sequence[tuple[str, str]] = ()) -> str:
    """Write how the page came about: command, day, versions, files."""
    from importlib.metadata import version

    versions = {"wfcli": wfcli.__version__, **{name: version(name) for name in ("torch", "timm", "matplotlib")}}
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    pictures = comparison.pictures if comparison is not None else None
    files = [*((one.name, one.sha256) for one in (pictures.files if pictures else ())), *others]
    listed = page.words_table(("file", "sha256"), files) if files else ""
    about_it = page.terms(
        [
            ("command", page.lines(about.command)),
            ("date", page.escape(about.date)),
            ("versions", page.escape(f"{said}, Python {platform.python_version()}")),
        ]
    )
    return page.section("How this was made", about_it) + page.section("Files", listed)


def _either(numbers: Sequence[int]) -> str:
    return " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])] if len(numbers) > 1 else map(str, numbers))


def _said(value: object) -> str:
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
