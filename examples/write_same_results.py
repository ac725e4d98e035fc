"""Put what a finished examples/same_teachers.sh measured where it is read: examples/results/ and the README's table.

Every mean is over sets of teachers, a generator's figure of a set over its seeds; behind the ± stands half the 95 %
interval of the mean over the sets (Student's t).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from write_silo_results import HERE, HEURISTICS, KINDS, README, Rows, Values, best_of, figure, mechanisms, rows_of

# The rules of thumb, and those that trust teachers less which stand apart: by how their rows begin.
SIMPLE = (*HEURISTICS[::2], "distance from the mean ^1", "distance from the mean ^2", "distance from the mean ^4")
ROBUST = ("distance from the mean ^-", "agreement with", "median")
COUNTS = (2, 4, 8)
BAD = (1, 2, 4, 6)
# Row of the tables -> row of the figures, or how those begin of which the best is taken; {kind} is the kind of the net.
ROWS = {
    "mean single": "mean single",
    "best single (by validation)": "best single (by validation)",
    "soup, data-free": "soup, data-free",
    "soup, calibrated": "soup, calibrated",
    "greedy soup, calibrated": "greedy soup, calibrated",
    "best of nine simple rules (chosen here), calibrated": SIMPLE,
    "best of five robust rules (chosen here), calibrated": ROBUST,
    "one generator for all three kinds, silos alone, data-free": "generator all, data-free",
    "one generator for all three kinds, silos alone, calibrated": "generator all, calibrated",
    "generator of this kind of net, same data alone, data-free": "generator same-{kind}, data-free",
    "generator of this kind of net, data-free": "generator both-{kind}, data-free",
    "generator of this kind of net, calibrated": "generator both-{kind}, calibrated",
    "**one generator for all three kinds, data-free**": "generator both, data-free",
    "one generator for all three kinds, calibrated": "generator both, calibrated",
    "control: generator of this kind, destroyed teachers": "control: generator both-{kind}, destroyed teachers",
    "control: one generator for all, destroyed teachers": "control: generator both, destroyed teachers",
    "ensemble": "ensemble",
}
SHOWN = tuple(  # in the README
    row for row in ROWS if "{kind}" not in str(ROWS[row]) and "silos alone, cal" not in row
)
PAPER = {
    "`universal`": "same-vgg",
    "`weightformer`: full attention, mask, raw rows, residual, shift consistency 0.1": "same-vgg-weightformer",
    "`weightformer` without flow": "same-vgg-weightformer-no-flow",
    "`weightformer` without mask": "same-vgg-weightformer-no-mask",
    "`weightformer` without shift consistency": "same-vgg-weightformer-no-shift",
}
COMPARED = (
    "best of nine simple rules (chosen here), calibrated",
    "best of five robust rules (chosen here), calibrated",
    "ensemble",
)
HEAD = """# examples/same_teachers.sh: all tables

Top-1 in %. Teachers that all saw the same images of a new task (three tasks of CIFAR-100 classes that no generator
and no base has seen, 1,000 test images each, and CIFAR-10, 2,000); eight sound ones a task, eight with something
changed: half of the labels wrong, noise on the weights, a rate eight times too high, a tenth of the epochs, four
times the epochs (which does no harm). Generators: the one for all kinds on both kinds of data of three seeds, the
others of one. Each figure is a mean over sets of K teachers, ± half its 95 % interval. The raw numbers are in the
JSON files beside this page.

"""


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of same_teachers.sh")
    runs: Path = parser.parse_args().runs
    paths = {kind: runs / f"same-{kind}.json" for kind in KINDS if (runs / f"same-{kind}.json").exists()}
    if not paths:
        raise SystemExit(f"{runs}: no tables there, expected same-vgg.json and others of examples/same_teachers.sh")
    results = {kind: json.loads(path.read_text()) for kind, path in paths.items()}
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- same table -->\n).*(<!-- end of same table -->)", re.DOTALL)
    text, found = marks.subn(lambda mark: mark[1] + readme_table(results) + mark[2], text)
    assert found == 1, "README.md lacks the marks of the table"
    README.write_text(text, encoding="utf-8")
    for kind, result in results.items():
        (HERE / "results" / f"same_teachers_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "same_teachers.md").write_text(page(results))
    print("\n".join(differences(results)))


def committed() -> dict[str, Any]:
    """Return the results in examples/results/."""
    files = {kind: HERE / "results" / f"same_teachers_{kind}.json" for kind in KINDS}
    return {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}


def readme_table(results: Mapping[str, Any]) -> str:
    """Write the README's table: any teachers, good and bad."""
    columns = {
        f"{KINDS[kind]}, K = {count}": named(rows_of(result, "any", count), kind)
        for kind, result in results.items()
        for count in COUNTS
    }
    return table(columns, SHOWN)


def page(results: Mapping[str, Any]) -> str:
    """Write all tables, with date, machine and versions."""
    one = next(iter(results.values()))
    parts = [
        f"{HEAD}{one['date']}; {one['machine']}; wfcli {one['wfcli']}, torch {one['torch']}, timm {one['timm']}.\n"
    ]
    groups = {
        "Any teachers, good and bad": {f"K = {count}": ("any", count) for count in COUNTS},
        "Sound teachers": {f"K = {count}": ("sound", count) for count in COUNTS},
        "So many bad ones of eight": {f"{n}": (f"{n} bad", 8) for n in BAD},
    }
    for title, columns in groups.items():
        found = {
            f"{KINDS[kind]}, {label}": named(rows_of(result, group, count), kind)
            for kind, result in results.items()
            for label, (group, count) in columns.items()
        }
        parts.append(f"## {title}\n\n{table(found)}")
    if "vgg" in results:
        faults = sorted({key.split("/")[0] for key in results["vgg"]["figures"] if key.startswith("one bad")})
        found = {fault.partition(": ")[2]: named(rows_of(results["vgg"], fault, 4), "vgg") for fault in faults}
        parts.append(f"## One of four with a fault (VGG-11)\n\n{table(found)}")
        paper = {f"K = {count}": rows_of(results["vgg"], "any", count, "0") for count in COUNTS}
        parts.append(
            "## The paper's mechanisms (VGG-11, any teachers, data-free, one seed)\n\n" + mechanisms(paper, PAPER)
        )
    parts.append("## Weight of the bad teachers\n\n" + weights(results))
    parts.append("## Differences\n\n" + "\n".join(f"- {line}" for line in differences(results)) + "\n")
    return "\n".join(parts)


def named(rows: Rows, kind: str) -> dict[str, Values]:
    """Return the rows of a table by the names they have there."""
    found = {
        label: rows.get(row.format(kind=kind), {}) if isinstance(row, str) else best_of(rows, row)
        for label, row in ROWS.items()
    }
    return {label: values for label, values in found.items() if values}


def table(columns: Mapping[str, Rows], labels: Iterable[str] = ROWS) -> str:
    """Write rows under the given names."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label in labels:
        cells = [figure(list(rows.get(label, {}).values())) for rows in columns.values()]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def weights(results: Mapping[str, Any]) -> str:
    """Say what part of the weight the bad ones of eight teachers get; equal weights give them their number / 8."""
    lines = ["| bad of eight | equal weights | " + " | ".join(KINDS[kind] for kind in results) + " |"]
    lines.append("|---:|---:|" + "---:|" * len(results))
    for number in BAD:
        cells = []
        for kind, result in results.items():
            rows = rows_of(result, f"{number} bad", 8)
            for name in ("both", f"both-{kind}"):
                if values := list(rows.get(f"generator {name}, weight of the bad teachers", {}).values()):
                    cells.append(f"{figure(values)} %")
                    break
            else:
                cells.append("")
        lines.append(f"| {number} | {100 * number / 8:.1f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(results: Mapping[str, Any]) -> list[str]:
    """Compare rows set by set; and say how far below the soup any task is."""
    lines = []
    places = [(group, count) for group in ("any", "sound") for count in COUNTS] + [(f"{n} bad", 8) for n in BAD]
    for kind, result in results.items():
        for group, count in places:
            rows = named(rows_of(result, group, count), kind)
            for name in ("generator of this kind of net", "one generator for all three kinds"):
                for way in ("data-free", "calibrated"):
                    own = rows.get(f"{name}, {way}", rows.get(f"**{name}, {way}**", {}))
                    if not own:
                        continue
                    where = f"{KINDS[kind]}, {group}, K = {count}: {name}, {way}"
                    for other in (name for name in (f"soup, {way}", *COMPARED) if name in rows):
                        apart = [own[key] - rows[other][key] for key in own if key in rows[other]]
                        lines.append(f"{where} - {other}: {figure(apart, '+')}")
                    lines.append(f"{where} - soup, worst task: {100 * worst_task(own, rows[f'soup, {way}']):+.1f}")
    return lines


def worst_task(own: Values, soup: Values) -> float:
    """Return the mean difference on the task where it is the lowest."""
    tasks = {key.split("/")[0] for key in own}
    return min(fmean(own[k] - soup[k] for k in own if k.startswith(f"{task}/")) for task in tasks)


if __name__ == "__main__":
    main()
