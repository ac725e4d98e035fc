"""Put what a finished examples/compare_methods.sh measured where it is read: examples/results/ and the README's table.

What is not in its work folder stays as it is in examples/results/. Every mean is over draws of teachers; behind the ±
stands half the 95 % interval of the mean (Student's t).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from write_silo_results import HERE, README, figure

from wfcli.units import duration, megabytes

PLACES = {
    "split-vgg": "VGG-11, split",
    "same-vgg": "VGG-11, same data",
    "split-resnet": "ResNet-18, split",
    "same-resnet": "ResNet-18, same data",
    "split-vit": "Transformer, split",
    "same-vit": "Transformer, same data",
    "scratch-vgg11_bn": "VGG-11, independent",
    "scratch-resnet18": "ResNet-18, independent",
}
SHORT = ("split-vgg", "same-vgg", "split-vit", "same-vit", "scratch-vgg11_bn")  # in the README
BEST, AUTO, NOT_MERGED = "best single", "auto", ("mean single", "ensemble", "auto")
Draws = Mapping[int, float]  # seed -> accuracy, 0..1
HEAD = """# examples/compare_methods.sh: all tables

Top-1 in % on the 10,000 test images of CIFAR-10; three different sets of K teachers (fewer where there are fewer), ±
half the 95 % interval of the mean over them. Split: silos, Dirichlet 0.3. Same data: sixteen fine-tunes of the same
images, eight of them spoilt. Independent: nets from different random starts. Time and memory (most of the whole process
while the student is made): medians of the sets of the largest K, one thread. `auto` takes the best on validation images
that no method has learned from. The sets themselves are in the JSON files beside this page.

"""


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of compare_methods.sh")
    place = parser.parse_args().runs / "tables"
    results = {
        name: json.loads((place / name / "compare.json").read_text())
        for name in PLACES
        if (place / name / "compare.json").exists()
    }
    if not results:
        raise SystemExit(f"{place}: no comparisons there, expected those of examples/compare_methods.sh")
    known = {**committed(), **results}
    results = {name: known[name] for name in PLACES if name in known}
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- compare table -->\n).*(<!-- end of compare table -->)", re.DOTALL)
    text, found = marks.subn(lambda mark: mark[1] + readme_table(results) + mark[2], text)
    if found != 1:
        raise SystemExit(
            "README.md lacks the marks of the table, <!-- compare table --> and <!-- end of compare table -->"
        )
    README.write_text(text, encoding="utf-8")
    for name, result in results.items():
        (HERE / "results" / f"compare_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "compare_methods.md").write_text(page(results))
    print("\n".join(line for name, result in results.items() for line in verdicts(name, result)))


def committed() -> dict[str, Any]:
    """Return the results in examples/results/."""
    files = {name: HERE / "results" / f"compare_{name}.json" for name in PLACES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def readme_table(results: Mapping[str, Any]) -> str:
    """Write the short form: test accuracy."""
    columns = {
        f"{PLACES[name]}, K = {count}": rows_of(result, count, "test")
        for name, result in results.items()
        if name in SHORT
        for count in counts(result)
    }
    return table(columns)


def page(results: Mapping[str, Any]) -> str:
    """Write all tables."""
    parts = [HEAD]
    for name, result in results.items():
        columns: dict[str, Any] = {}
        for count in counts(result):
            columns[f"K = {count}: validation"] = rows_of(result, count, "validation")
            columns[f"K = {count}: test"] = rows_of(result, count, "test")
        last = [line for line in result["lines"] if line["count"] == counts(result)[-1]]
        costs = {
            method: " | ".join(
                (
                    duration(median(line["seconds"] for line in last if line["method"] == method)),
                    _memory([line["memory"] for line in last if line["method"] == method]),
                )
            )
            for method in {line["method"] for line in last}
        }
        said = "\n".join(f"- {line}" for line in verdicts(name, result))
        parts.append(f"## {PLACES[name]}\n\n{table(columns, costs)}\n{said}\n")
    return "\n".join(parts)


def _memory(found: Sequence[int | None]) -> str:
    known = [number for number in found if number is not None]
    return megabytes(median(known)) if known else ""


def counts(result: Mapping[str, Any]) -> list[int]:
    """Return the numbers of teachers, in order."""
    return sorted({line["count"] for line in result["lines"]})


def rows_of(result: Mapping[str, Any], count: int, what: str) -> dict[str, Draws]:
    """Return method -> seed -> accuracy."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in result["lines"]:
        if line["count"] == count and line[what] is not None:
            found[line["method"]][line["seed"]] = line[what]
    return found


def table(columns: Mapping[str, Mapping[str, Draws]], costs: Mapping[str, str] | None = None) -> str:
    """Write the methods, and under them what is no merging."""
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    names.sort(key=lambda name: (" steps" in name, name in NOT_MERGED, name in ("ensemble", "auto")))
    heads = [*columns, *(["time", "memory"] if costs else [])]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in names:
        cells = [figure(list(rows.get(name, {}).values())) for rows in columns.values()]
        label = f"**{name}**" if name == AUTO else name
        lines.append(f"| {label} | " + " | ".join([*cells, *([costs.get(name, " | ")] if costs else [])]) + " |")
    return "\n".join(lines) + "\n"


def verdicts(name: str, result: Mapping[str, Any]) -> list[str]:
    """Say how far auto is from the method that is best on average, and from the best single, draw by draw."""
    lines = []
    for count in counts(result):
        for what in ("validation", "test"):
            rows = rows_of(result, count, what)
            methods = {one: draws for one, draws in rows.items() if one not in NOT_MERGED and " steps" not in one}
            most = max(len(draws) for draws in methods.values())
            always = [one for one in methods if len(methods[one]) == most]
            best = max(always, key=lambda one: fmean(methods[one].values()))
            for other in dict.fromkeys((best, BEST)):
                apart = [rows[AUTO][seed] - rows[other][seed] for seed in rows[AUTO] if seed in rows[other]]
                which = "the best method, " if other == best else ""
                lines.append(f"{PLACES[name]}, K = {count}, {what}: auto - {which}{other}: {figure(apart, '+')}")
    return lines


if __name__ == "__main__":
    main()
