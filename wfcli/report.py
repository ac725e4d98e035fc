"""Results -> tables and JSON.

Only result dataclasses are read; nothing is computed but the way to show it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from wfcli.pipes import STDOUT
from wfcli.units import count, duration, megabytes, percent, points

if TYPE_CHECKING:
    from wfcli.core.methods import Method
    from wfcli.core.pretrained import Pretrained
    from wfcli.engine.align import Alignment
    from wfcli.engine.auto import Contest
    from wfcli.engine.compare import CompareResult
    from wfcli.engine.draws import Summary
    from wfcli.engine.evaluate import Comparison, Row
    from wfcli.engine.finetune import FinetuneResult
    from wfcli.engine.fuse import FuseResult
    from wfcli.engine.inspect import Entry, InspectResult, Plan, WeightsReport
    from wfcli.engine.listing import ListResult, Tagged
    from wfcli.engine.pull import PullResult
    from wfcli.engine.push import PushResult
    from wfcli.engine.train_generator import TrainGeneratorResult
    from wfcli.engine.train_teachers import TrainTeachersResult
    from wfcli.engine.train_zoos import TrainZoosResult

SECTIONS = (("teacher",), ("mean", "best", "ensemble", "soup", "calibrated_soup"))
"""Kinds of rows that stand together; all other kinds make the last section."""


# JSON --------------------------------------------------------------------------------------------------------------


def as_json(result: object) -> str:
    """Write a result as one JSON object: dataclass fields by name, paths as strings, what is not finite as null."""
    return json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# Pieces ------------------------------------------------------------------------------------------------------------


class _Table(Table):
    """A first column to the left and folded, figures to the right and whole; close-set where it is narrow."""

    def __init__(self, first: str, *figures: str) -> None:
        super().__init__(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", border_style="dim")
        self.add_column(first, overflow="fold")
        for name in figures:
            self.add_column(name, justify="right", no_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.padding = (0, 2 if options.max_width >= 100 else 0, 0, 0)
        yield from super().__rich_console__(console, options)


def _line(*parts: str | None, style: str = "") -> Text:
    return Text(" · ".join(part for part in parts if part), style=style)


def _name(file: str) -> Text:
    return Text(file.removesuffix(".safetensors"))


def _dim(text: str) -> Text:
    return Text(text, style="dim")


def _stack(*pieces: RenderableType | None) -> Group:
    return Group(*(piece for piece in pieces if piece is not None))


# Results -----------------------------------------------------------------------------------------------------------


def compared(comparison: Comparison) -> RenderableType:
    """Draw the table of `wfcli eval`."""
    heading = _line(
        comparison.architecture, f"{comparison.data}, {comparison.split} split", f"{comparison.images:,} images"
    )
    return _stack(heading, Text(), comparison_table(comparison), *_footnotes(comparison))


def comparison_table(comparison: Comparison) -> Table:
    """Draw teachers, baselines and checkpoints in sections; the best figure of a column is bold."""
    table = _Table("", "top-1 %", "95 %", "vs best", "NLL", "ECE %", "params", "size", "images/s")
    rows = comparison.rows
    names = {row.name for row in rows}
    # Parameters and size hardly differ and speed is noisy: a bold figure there would say nothing.
    highest = max((row.top1 for row in rows), default=0.0)
    lowest_nll = min((row.nll for row in rows), default=0.0)
    lowest_ece = min((row.ece for row in rows), default=0.0)
    for section in _sections(rows):
        for row in section:
            low, high = row.top1_ci
            table.add_row(
                row_name(row, names),
                _best(percent(row.top1), row.top1 == highest),
                _dim(f"{percent(low, 1)}–{percent(high, 1)}"),
                _best("" if row.delta_best is None else points(row.delta_best), row.top1 == highest),
                _best(f"{row.nll:.3f}", row.nll == lowest_nll),
                _best(percent(row.ece, 1), row.ece == lowest_ece),
                count(row.parameters),
                megabytes(row.size),
                f"{row.images_per_second:,.0f}",
            )
        table.add_section()
    return table


def _sections(rows: Iterable[Row]) -> list[list[Row]]:
    sections: list[list[Row]] = [[] for _ in range(len(SECTIONS) + 1)]
    for row in rows:
        place = next((index for index, kinds in enumerate(SECTIONS) if row.kind in kinds), len(SECTIONS))
        sections[place].append(row)
    return [section for section in sections if section]


def row_name(row: Row, names: Container[str]) -> Text:
    """Say what a row is in few letters; a suffix stays where another row has the name without it."""
    if row.kind == "mean":
        return Text("mean teacher")
    short = _name(row.name)
    if row.kind == "best":
        return Text.assemble("best: ", short)
    return Text(row.name) if short.plain in names else short


def _best(text: str, is_best: bool) -> Text:
    return Text(text, style="bold" if is_best else "")


def _footnotes(comparison: Comparison) -> list[Text]:
    notes = [_dim(f"{_name(row.name)}: {row.note}") for row in comparison.rows if row.note]
    if comparison.best is not None:
        notes.append(_dim(f"best teacher: {_name(comparison.best)}, chosen on the {comparison.best_chosen_on} split"))
    return notes


def fused(result: FuseResult) -> RenderableType:
    """Draw where the student is, what made it, and the table where there was data."""
    made = _line(
        f"{result.method} of {len(result.teachers)} teachers",
        result.base and f"base {result.base}",
        "measured from their mean (no --base)" if result.origin == "mean" else None,
        result.generator and f"generator {result.generator} ({(result.generator_digest or '')[:12]})",
        "BatchNorm calibrated" if result.calibrated else None,
        f"{result.learned:,} images looked at" if result.learned else None,
        f"head fitted on {result.probes:,} made-up images" if result.probes else None,
        f"learnt from {result.unlabelled:,} images without labels" if result.unlabelled else None,
    )
    table = [] if result.comparison is None else [Text(), compared(result.comparison)]
    tried = [] if result.contest is None else [Text(), *_tried(result.contest)]
    return _stack(
        _written(result.output, result.digest, result.seconds),
        made,
        None if result.regime is None else Text(result.regime),
        None if result.alignment is None else _alignment(result.alignment),
        None if result.weights is None else _shares(result.teachers, result.weights),
        *tried,
        *table,
    )


def _tried(contest: Contest) -> list[RenderableType]:
    """Draw what `--method auto` tried: the chosen one is bold."""
    table = _Table("", "validation top-1 %", "validation NLL", f"{contest.split} top-1 %", "time", "memory")
    for one in contest.candidates:
        chosen = one.method == contest.chosen
        table.add_row(
            _best(one.method, chosen),
            _best("–" if one.validation is None else percent(one.validation), chosen),
            "" if one.nll is None else f"{one.nll:.3f}",
            _best("–" if one.test is None else percent(one.test), chosen),
            duration(one.seconds),
            "" if one.memory is None else megabytes(one.memory),
        )
    notes = [_dim(f"{one.method}: {one.note}") for one in contest.candidates if one.note]
    said = f"{contest.chosen}: chosen on {contest.images:,} validation images, from which no method has learned"
    return [table, *notes, _dim(said)]


def methods_compared(result: CompareResult) -> RenderableType:
    """Draw the table of `wfcli compare`: accuracy of every method for every number of teachers, time and memory."""
    counts = list(dict.fromkeys(one.count for one in result.summary))
    found = {(one.count, one.method): one for one in result.summary}
    names = list(dict.fromkeys(one.method for one in result.summary))
    draws = {one.count: one.draws for one in result.summary}
    table = _Table("", *(f"K = {count}: top-1 %" for count in counts), "time", "memory")
    whole = [one for one in result.summary if one.made == one.draws]
    best = {count: max((one.test or 0.0 for one in whole if one.count == count), default=0.0) for count in counts}
    for name in names:
        cells = [found.get((count, name)) for count in counts]
        last = next(one for one in reversed(cells) if one is not None)
        table.add_row(
            name,
            *(
                _best(_level(one), one is not None and one.made == one.draws and one.test == best[one.count])
                for one in cells
            ),
            duration(last.seconds),
            "" if last.memory is None else megabytes(last.memory),
        )
    drawn = ", ".join(f"{draws[count]} of {count} teachers" for count in counts)
    heading = _line(result.architecture, f"{result.data}, {result.split} split", f"draws: {drawn}")
    note = "± half the 95 % interval of the mean over the draws; time and memory: median of the last column"
    left = dict.fromkeys((line.method, line.note) for line in result.lines if line.validation is line.test is None)
    return _stack(
        Text.assemble((str(result.output), "bold"), f" · {duration(result.seconds)}"),
        heading,
        Text(),
        table,
        *(_dim(f"{method}: {why}") for method, why in left),
        _dim(note),
    )


def _level(one: Summary | None) -> str:
    if one is None or one.made == 0:
        return "–"
    level = one.test if one.test is not None else one.validation
    some = "" if one.made == one.draws else f" ({one.made} of {one.draws})"  # of the draws: no mean over all
    return percent(level or 0.0) + ("" if one.half is None else f" ± {percent(one.half)}") + some


def _alignment(alignment: Alignment) -> Text:
    """Say what was brought into whose order, and that nothing else has changed."""
    moved = ", ".join(alignment.moved) or "none needed it"
    return _line(
        f"aligned by {alignment.how}: {moved}",
        f"{count(alignment.spaces)} spaces, {percent(alignment.share, 0)} % of the parameters",
        f"each answers as before (to {alignment.change:.0e})",
        f"left as they are: {', '.join(alignment.fixed)}" if alignment.fixed else None,
    )


def _shares(teachers: Sequence[str], weights: Sequence[float]) -> Text:
    """Say what weight the teachers' rows have in the mean; one with less than half of an equal share stands out."""
    little = [weight < 0.5 / len(weights) for weight in weights]
    parts = [
        Text.assemble(_name(name), " ", (f"{percent(weight, 0)} %", "yellow" if low else ""))
        for name, weight, low in zip(teachers, weights, little, strict=True)
    ]
    return Text.assemble("weight of the teachers: ", Text(", ").join(parts))


def _written(path: Path, digest: str, seconds: float) -> Text:
    where = "standard output" if path == STDOUT else str(path)
    return Text.assemble((where, "bold"), f" · sha256 {digest[:12]} · {duration(seconds)}")


def finetuned(result: FinetuneResult) -> RenderableType:
    """Draw where the student is and its accuracy on the validation split, step by step."""
    table = _Table("step", "validation top-1 %")
    for step, top1 in result.validation:
        table.add_row(_best(f"{step:,}", step == result.best_step), _best(percent(top1), step == result.best_step))
    speed = f"{result.images_seen / result.seconds:,.0f} images/s" if result.seconds else None
    return _stack(
        _written(result.output, result.digest, result.seconds),
        _line(f"{result.steps:,} steps", f"best step {result.best_step:,}", f"{result.images_seen:,} images", speed),
        Text(),
        table,
    )


def teachers_trained(result: TrainTeachersResult) -> RenderableType:
    """Draw the zoo: who saw how many images of how many classes, and the accuracy on the validation split."""
    zoo = result.zoo
    faults = [teacher["recipe"].get("fault", "none") for teacher in zoo["teachers"]]
    spoilt = any(fault != "none" for fault in faults)
    table = _Table("", "images", "classes", "lr", "epochs", *(["fault"] if spoilt else []), "validation top-1 %")
    for teacher, fault in zip(zoo["teachers"], faults, strict=True):
        seen = teacher["class_counts"]
        recipe = teacher["recipe"]
        table.add_row(
            _name(teacher["file"]),
            f"{sum(seen):,}",
            str(sum(number > 0 for number in seen)),
            f"{recipe['lr']:.3g}",
            f"{recipe['epochs']:.3g}",
            *([fault] if spoilt else []),
            percent(teacher["top1"]),
        )
    arch = zoo["architecture"]
    args = ", ".join(f"{name}={value}" for name, value in arch["args"].items())
    base = "own random starts" if zoo["base"] is None else f"base {_name(zoo['base']['name'])}"
    return _stack(
        Text.assemble((str(result.folder), "bold"), f" · {duration(result.seconds)}"),
        _line(
            f"{arch['name']}({args})" if args else arch["name"],
            zoo["data"]["source"],
            f"shares {zoo['shares']['kind']}",
            base,
        ),
        Text(),
        table,
    )


def zoos_trained(result: TrainZoosResult) -> RenderableType:
    """Draw all zoos, one a line: mean and spread of their teachers on the validation split."""
    table = _Table("", "teachers", "shares", "classes", "validation top-1 %", "worst", "best")
    for name, zoo in result.zoos.items():
        top1 = [teacher["top1"] for teacher in zoo["teachers"]]
        table.add_row(
            _name(name),
            str(len(top1)),
            zoo["shares"]["kind"],
            str(len(zoo["class_names"])),
            percent(sum(top1) / len(top1)),
            percent(min(top1)),
            percent(max(top1)),
        )
    return _stack(
        Text.assemble((str(result.folder), "bold"), f" · {duration(result.seconds)}"),
        Text(),
        table,
    )


def generator_trained(result: TrainGeneratorResult) -> RenderableType:
    """Draw where the generator is and what it gained over the soup on held-out tasks."""
    return _stack(
        _written(result.folder, result.digest, result.seconds),
        _line(
            f"{count(result.parameters)} parameters",
            f"{result.steps:,} steps, best {result.best_step:,}",
            f"{points(result.gain)} points over the soup, held out",
        ),
    )


def pushed(result: PushResult) -> RenderableType:
    """Draw what went up and where it is; of what would go up, the card too."""
    table = _Table(f"{result.kind} {result.repo}", "size")
    for file in result.files:
        table.add_row(Text(file.name), megabytes(file.size))
    if result.url is None:
        card = Text(result.card.rstrip(), no_wrap=True, overflow="ignore")  # its lines as they are
        return _stack(table, Text(), card, Text(), _dim("nothing was sent: --dry-run"))
    where = Text.assemble((result.url, "bold"), f" · commit {result.commit}", no_wrap=True, overflow="ignore")
    return _stack(table, Text(), where)


def pulled(result: PullResult) -> RenderableType:
    """Draw where what was fetched lies, its commit and its size."""
    table = _Table("", "size")
    for file in result.files:
        table.add_row(Text(file.name), megabytes(file.size))
    where = Text.assemble((str(result.folder), "bold"), no_wrap=True, overflow="ignore")
    what = _line(f"{result.repo} at commit {result.commit}", f"{len(result.files):,} files", megabytes(result.size))
    return _stack(where, what, Text(), table)


def recipes_shown(result: Mapping[str, Mapping[str, str]]) -> str:
    """Write the recipes of students as TOML, one after the other, each under its name where there are several."""
    recipes = result["recipes"]
    titles = {name: "# " + " ".join(name.splitlines()) for name in recipes}  # a comment is one line
    return "\n\n".join(f"{titles[name]}\n{text}" if len(recipes) > 1 else text for name, text in recipes.items())


def inspected(result: InspectResult) -> RenderableType:
    """Draw one row a checkpoint, who made it, and what the weights say where they were read."""
    # Most files are in timm's layout: the column stands there only for others, it would take the names their place.
    foreign = any(entry.layout not in (None, "timm") for entry in result.entries)
    table = _Table("", "architecture", *["layout"] * foreign, "tensors", "params", "dtype", "classes", "size")
    for entry in result.entries:
        table.add_row(
            _name(entry.name),
            Text(entry.architecture or "unknown", style="" if entry.architecture else "dim"),
            *[entry.layout or ""] * foreign,
            f"{entry.tensors:,}",
            count(entry.parameters),
            " ".join(dtype for dtype in entry.dtypes if "F" in dtype),  # not the integer counters of BatchNorm
            "" if entry.classes is None else f"{entry.classes:,}",
            megabytes(entry.size),
        )
    made = [_made_by(entry) for entry in result.entries if entry.provenance]
    pieces: list[RenderableType] = [table]
    if made:
        pieces += [Text(), *made]
    if result.weights is not None:
        pieces += [Text(), *_weights(result.entries, result.weights)]
    for plan in result.plans:
        pieces += [Text(), *_plan(plan)]
    return Group(*pieces)


def _plan(plan: Plan) -> list[RenderableType]:
    lines = []
    for space in plan.spaces:
        names = ", ".join(space.axes[:4]) + (f" and {len(space.axes) - 4} more" if len(space.axes) > 4 else "")
        heads = f" in each of {space.heads} heads" if space.heads else ""
        lines.append(Text.assemble((f"{space.size:,}{heads}", "bold"), f": {names}"))
    head = _line(
        plan.architecture,
        f"{count(len(plan.spaces))} spaces whose units may be permuted",
        f"{percent(plan.share, 0)} % of the parameters",
    )
    unknown = [Text(f"not understood, left as it is: {name}", style="yellow") for name in plan.unknown]
    return [head, *unknown, Text(), *lines]


def _made_by(entry: Entry) -> Text:
    made = entry.provenance or {}
    sources = made.get("sources") or []
    generator = made.get("generator") or {}
    return Text.assemble(
        _name(entry.name),
        (": made by ", "dim"),
        _line(
            f"wfcli {made.get('wfcli', '')} {made.get('verb', '')}",
            made.get("method"),
            f"generator {generator['name']}" if generator.get("name") else None,
            f"from {', '.join(str(source.get('name')) for source in sources)}" if sources else None,
            f"seed {made['seed']}" if "seed" in made else None,
        ),
    )


def _weights(entries: Sequence[Entry], weights: WeightsReport) -> list[RenderableType]:
    pieces: list[RenderableType] = [Text(weights.sentence)]
    if weights.cosines is not None and weights.distances is not None:
        table = _Table("", "cosine to the mean", "distance from the mean")
        for entry, cosine, distance in zip(entries, weights.cosines, weights.distances, strict=True):
            table.add_row(_name(entry.name), f"{cosine:.3f}", f"{distance:.3f}")
        pieces += [Text(), table]
    bad = [f"{found.checkpoint}: {found.tensor}: {found.nan:,} NaN, {found.inf:,} Inf" for found in weights.non_finite]
    return [*pieces, *(Text(line, style="red") for line in bad)]


def methods_listed(result: Mapping[str, Mapping[str, Method]]) -> RenderableType:
    """Draw the merge methods: what each does, needs and takes."""
    table = _Table("method")
    for title in ("needs", "takes"):
        table.add_column(title, overflow="fold", min_width=12)
    table.add_column("what it does", overflow="fold", ratio=1)
    for name, method in result["methods"].items():
        needs = (
            ["--base"] * (method.base == "must")
            + ["--data or --unlabelled"] * (method.data == "images")
            + ["--data"] * (method.data == "labels")
            + ["alignment"] * method.align
        )
        takes = ["--base"] * (method.base == "may") + ["--weights"] * method.weights
        takes += [f"{param}={value:g}" for param, value in method.params.items()]
        what = f"{method.what} (arXiv {method.paper})" if method.paper else method.what
        table.add_row(name, ", ".join(needs), ", ".join(takes), Text(what))
    return table


def listed(result: ListResult) -> RenderableType:
    """Draw the generators of the index, what is in the Hub's cache, and what the Hub was asked for."""
    pieces: list[RenderableType] = [_generators(result.pretrained), Text()]
    if result.cached:
        table = _Table("in the Hub's cache", "kind", "commit", "size")
        for one in result.cached:
            table.add_row(Text(f"hf:{one.repo}"), one.kind, one.commit[:12], megabytes(one.size))
        pieces.append(table)
    else:
        pieces.append(Text("in the Hub's cache is nothing that wfcli has made"))
    if result.hub is not None:
        pieces += [Text(), *_tagged(result.hub)]
    return Group(*pieces)


def _generators(known: Sequence[Pretrained]) -> RenderableType:
    table = _Table("generator", "preset")
    table.columns[0].overflow, table.columns[0].no_wrap = "ellipsis", True
    table.add_column("trained on", no_wrap=True)
    for title in ("dataset", "K", "where"):
        table.add_column(title, overflow="fold")
    for one in known:
        nets = dict.fromkeys(label.partition("(")[0] for label in one.architectures)  # arguments are no other net
        where = "here" if one.here else f"hf:{one.hub}" if one.hub else "nowhere"
        counts = " ".join(map(str, one.counts))
        table.add_row(Text(f"pretrained:{one.name}"), one.preset, "\n".join(nets), one.dataset, counts, where)
    return table if known else Text("no generator comes with this installation")


def _tagged(found: Tagged) -> list[RenderableType]:
    if not found.models:
        return [Text(f"on the Hub nothing has the tag {found.tag}")]
    table = _Table(f"on the Hub, tag {found.tag}", "kind", "commit", "changed")
    for one in found.models:
        table.add_row(Text(f"hf:{one.repo}"), one.kind or "", (one.commit or "")[:12], one.date or "")
    more = [_dim(f"there are more than these {len(found.models):,}: raise --limit")] if found.more else []
    return [table, *more]
