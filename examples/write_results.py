"""Put what a finished examples/cifar_fine_tunes.sh measured where it is read: examples/results/ and the README's table.

Prints the differences that the README's text speaks of, subset by subset of the teachers: mean, spread and extremes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cifar_table import markdown

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
KNOWLEDGE = ("split", "same")
HEURISTICS = ("FedAvg", "distance from", "head rows")
Table = Mapping[str, Sequence[float]]

# Row of the README -> row of the table; None: the best of the heuristics.
ROWS = {
    "mean single": "mean single",
    "best single (by validation)": "best single (by validation)",
    "soup, data-free": "soup, data-free",
    "soup, calibrated": "soup, calibrated",
    "greedy soup, calibrated": "greedy soup, calibrated",
    "best of nine simple heuristics (chosen here)": None,
    "**`wfcli fuse`, data-free**": "generator, data-free",
    "**`wfcli fuse`, calibrated**": "generator, calibrated",
    "the same, data-free, `--probes 2000`": "generator, head fitted on probes, data-free",
    "soup, data-free, `--probes 2000`": "soup, head fitted on probes, data-free",
    "control: fed destroyed teachers": "control: generator, destroyed teachers",
    "control: prior alone, calibrated": "control: prior alone, calibrated",
    "ensemble": "ensemble",
    "100 steps of `finetune` from the fused student": "100 steps of distillation from the generator",
    "100 steps from the soup": "100 steps of distillation from the soup",
    "100 steps from the best single": "100 steps of distillation from the best single",
    "100 steps from scratch": "100 steps of distillation from the scratch",
}
COMPARED = (
    ("generator, data-free", "soup, data-free"),
    ("generator, calibrated", "soup, calibrated"),
    ("generator, head fitted on probes, data-free", "generator, data-free"),
    ("generator, head fitted on probes, data-free", "soup, head fitted on probes, data-free"),
    ("generator, head fitted on probes, data-free", "ensemble"),
    ("generator, calibrated", "mean single"),
    ("generator, calibrated", "ensemble"),
    ("100 steps of distillation from the generator", "ensemble"),
    ("100 steps of distillation from the generator", "100 steps of distillation from the soup"),
    ("100 steps of distillation from the generator", "100 steps of distillation from the best single"),
)


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of cifar_fine_tunes.sh")
    runs: Path = parser.parse_args().runs
    results = {kind: json.loads((runs / f"{kind}.json").read_text()) for kind in KNOWLEDGE}
    tables: dict[str, Table] = {}
    for kind, result in results.items():
        (HERE / "results" / f"cifar_fine_tunes_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")
        tables |= result["tables"]
    (HERE / "results" / "cifar_fine_tunes.md").write_text(page(results, tables))
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- table -->\n).*(<!-- end of table -->)", re.DOTALL)
    README.write_text(marks.sub(lambda found: found[1] + readme_table(tables) + found[2], text), encoding="utf-8")
    print("\n".join(differences(tables)))


def page(results: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    """Return all rows of all tables, with date, machine and versions."""
    one = results["split"]
    head = (
        "# examples/cifar_fine_tunes.sh: all rows\n\n"
        "Top-1 in %, 10,000 test images of CIFAR-10; spread: standard deviation over subsets of teachers (and "
        "seeds of the generator). The raw numbers are in the JSON files beside this page.\n\n"
        f"{one['date']}; {one['machine']}; wfcli {one['wfcli']}, torch {one['torch']}, timm {one['timm']}.\n\n"
    )
    return head + "\n".join(markdown(title, rows) for title, rows in tables.items())


def readme_table(tables: Mapping[str, Table]) -> str:
    """Return the README's rows, one column a table: of the same data, for split data has a table of its own there."""
    tables = {title: rows for title, rows in tables.items() if title.startswith("same")}
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---:|" * len(tables)]
    for label, row in ROWS.items():
        cells = [best_heuristic(rows) if row is None else rows.get(row, ()) for rows in tables.values()]
        if not any(cells):
            continue
        lines.append(f"| {label} | " + " | ".join(map(figure, cells)) + " |")
    return "\n".join(lines) + "\n"


def best_heuristic(rows: Table) -> Sequence[float]:
    """Return the heuristic with the highest mean on the test images: an advantage that no user has."""
    return max((values for name, values in rows.items() if name.startswith(HEURISTICS)), key=fmean)


def figure(values: Sequence[float]) -> str:
    """Write mean and standard deviation in percent."""
    if not values:
        return ""
    return f"{100 * fmean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def differences(tables: Mapping[str, Table]) -> list[str]:
    """Compare rows on the same subsets of teachers, each row by its mean over the generator's seeds."""
    lines = []
    for title, rows in tables.items():
        for a, b in (pair for pair in COMPARED if all(row in rows for row in pair)):
            first, second = (by_subset(rows[row], len(rows["ensemble"])) for row in (a, b))
            apart = [100 * (x - y) for x, y in zip(first, second, strict=True)]
            extremes = f"{min(apart):+.2f} to {max(apart):+.2f}"
            lines.append(f"{title}: {a} - {b}: {fmean(apart):+.2f} ± {stdev(apart):.2f} ({extremes})")
    return lines


def by_subset(values: Sequence[float], subsets: int) -> list[float]:
    """Return one number for each subset of teachers: the mean over the seeds, which come one after the other."""
    seeds = len(values) // subsets
    return [fmean(values[i * seeds : (i + 1) * seeds]) for i in range(subsets)]


if __name__ == "__main__":
    main()
