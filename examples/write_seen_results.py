"""Put what a finished examples/seen_dataset.sh measured where it is read: examples/results/ and the README's table.

What is not in its work folder stays as it is in examples/results/.

Every mean is over sets of teachers, a generator's figure of a set over its seeds; behind the ± stands half the 95 %
interval of the mean over the sets (Student's t).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from write_silo_results import HERE, HEURISTICS, README, Rows, Values, best_of, figure, rows_of

COUNTS = (3, 6)
PLACES = {
    "vgg-cifar10": "VGG-11, CIFAR-10",
    "vgg-cifar100": "VGG-11, CIFAR-100",
    "vit-cifar10": "Transformer, CIFAR-10",
}
STEPS = "100 steps of distillation from"
# Row of the tables -> row of the figures, or how those begin of which the best is taken.
ROWS: dict[str, str | tuple[str, ...]] = {
    "mean single": "mean single",
    "best single (by validation)": "best single (by validation)",
    "soup, data-free": "soup, data-free",
    "soup, calibrated": "soup, calibrated",
    "greedy soup, calibrated": "greedy soup, calibrated",
    "best of nine simple heuristics (chosen here), calibrated": HEURISTICS,
    "**`specialised`: mixing and prior, data-free**": "generator specialised, data-free",
    "**`specialised`: mixing and prior, calibrated**": "generator specialised, calibrated",
    "**the same, eight augmented copies of an image, calibrated**": "generator views, calibrated",
    "control: `specialised`, its prior alone, calibrated": "control: prior alone of generator specialised",
    "control: a prior trained alone, calibrated": "generator prior, calibrated",
    "control: `specialised`, destroyed teachers": "control: generator specialised, destroyed teachers",
    "ensemble": "ensemble",
    "100 steps of `finetune` from the `specialised` student": f"{STEPS} generator specialised",
    "100 steps from the soup": f"{STEPS} soup",
    "100 steps from the best single": f"{STEPS} best single",
    "100 steps from scratch": f"{STEPS} scratch",
}
PARTS: dict[str, str | tuple[str, ...]] = {
    "`specialised`, 800 steps, twelve teachers": "generator specialised, calibrated",
    "`universal`, 800 steps: the mixing alone": "generator universal, calibrated",
    "on from the shipped `universal` generator, 800 steps": "generator shipped, calibrated",
    "six teachers instead of twelve": "generator few, calibrated",
    "1,200 steps, eight augmented copies of an image instead of two": "generator views, calibrated",
    "seven times as many parameters of the mixing": "generator large, calibrated",
    "in turn: 800 steps of mixing, 800 of the prior": "generator turn-prior, calibrated",
    "in turn: the same, 400 of mixing": "generator turn-mixing, calibrated",
    "in turn: the same, 400 of both": "generator turn-both, calibrated",
    "`weightformer`: raw rows, residual, mask, flow, shift consistency": "generator weightformer, calibrated",
    "`weightformer` without flow": "generator weightformer-no-flow, calibrated",
    "`weightformer` without mask": "generator weightformer-no-mask, calibrated",
    "`weightformer` without shift consistency": "generator weightformer-no-shift, calibrated",
    "function space: teachers weighted by their likelihood of labelled images (best sharpness, chosen here)": (
        "function space",
    ),
    "learned soup: a weight a teacher and tensor, fitted on labelled images": (
        "learned soup: a weight a teacher and tensor, fitted on labelled images"
    ),
}
COMPARED = (
    "mean single",
    "best single (by validation)",
    "soup, calibrated",
    "best of nine simple heuristics (chosen here), calibrated",
    "control: a prior trained alone, calibrated",
    "100 steps from the soup",
    "ensemble",
)
HEAD = """# examples/seen_dataset.sh: all tables

Top-1 in %. Fine-tunes that all saw the same 35,000 images of CIFAR-10 (from a base trained on CIFAR-100; where there
is a Transformer: 5,000) or of CIFAR-100 (from a base trained on CIFAR-10), recipes varied. Generators have twelve of
them: they learn from eight and choose their best step on four, on 10,000 images that no teacher has seen. Tested are
sets of K of ten others, on 5,000 test images. Each figure is a mean over five sets, ± half its 95 % interval;
`specialised` and the prior trained alone: three seeds (of the Transformer one); their controls and distillation: the
first. Calibrated: BatchNorm statistics of 1,000 augmented images. Distillation on the images of teachers and
generators together, rates chosen on validation images, the last step counts. The raw numbers are in the JSON files
beside this page.

"""


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of seen_dataset.sh")
    runs: Path = parser.parse_args().runs
    paths = {place: runs / f"{place}.json" for place in PLACES if (runs / f"{place}.json").exists()}
    if not paths:
        raise SystemExit(f"{runs}: no tables there, expected vgg-cifar10.json and others of examples/seen_dataset.sh")
    known = {**committed(), **{place: json.loads(path.read_text()) for place, path in paths.items()}}
    results = {place: known[place] for place in PLACES if place in known}
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- seen table -->\n).*(<!-- end of seen table -->)", re.DOTALL)
    text, found = marks.subn(lambda mark: mark[1] + table(results, ROWS) + mark[2], text)
    assert found == 1, "README.md lacks the marks of the table"
    for place, result in results.items():
        (HERE / "results" / f"seen_dataset_{place}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "seen_dataset.md").write_text(page(results))
    README.write_text(text, encoding="utf-8")
    print("\n".join(differences(results)))


def committed() -> dict[str, Any]:
    """Return the results in examples/results/."""
    files = {place: HERE / "results" / f"seen_dataset_{place}.json" for place in PLACES}
    return {place: json.loads(file.read_text()) for place, file in files.items() if file.exists()}


def page(results: Mapping[str, Any]) -> str:
    """Write all tables, with date, machine and versions."""
    made = [
        f"{PLACES[place]}: {one['date']}; {one['machine']}; wfcli {one['wfcli']}, torch {one['torch']}, "
        f"timm {one['timm']}.\n"
        for place, one in results.items()
    ]
    parts = [
        HEAD + "\n".join(made),
        f"## Students, baselines, controls\n\n{table(results, ROWS)}",
        "## What may make the teachers' weights add something (one seed, calibrated)\n\n" + table(results, PARTS, "0"),
        "## Differences\n\n" + "\n".join(f"- {line}" for line in differences(results)) + "\n",
    ]
    return "\n".join(parts)


def named(rows: Rows, labels: Mapping[str, str | tuple[str, ...]]) -> dict[str, Values]:
    """Return the rows of a table by the names they have there, those that are known."""
    found = {label: rows.get(row, {}) if isinstance(row, str) else best_of(rows, row) for label, row in labels.items()}
    return {label: values for label, values in found.items() if values}


def table(results: Mapping[str, Any], labels: Mapping[str, str | tuple[str, ...]], seed: str = r"\d") -> str:
    """Write rows under the given names, a column for each net, dataset and K; generators of the seeds of a pattern."""
    columns = {
        f"{PLACES[place]}, K = {count}": named(rows_of(result, "seen", count, seed), labels)
        for place, result in results.items()
        for count in COUNTS
    }
    columns = {title: rows for title, rows in columns.items() if rows}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label in labels:
        cells = [figure(list(rows.get(label, {}).values())) for rows in columns.values()]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(results: Mapping[str, Any]) -> list[str]:
    """Compare rows set by set."""
    lines = []
    own_rows = (
        "**`specialised`: mixing and prior, calibrated**",
        "**the same, eight augmented copies of an image, calibrated**",
        "100 steps of `finetune` from the `specialised` student",
    )
    for place, result in results.items():
        for count in COUNTS:
            rows = named(rows_of(result, "seen", count), ROWS)
            for own in (name for name in own_rows if name in rows):
                for other in (name for name in COMPARED if name in rows):
                    apart = [rows[own][key] - rows[other][key] for key in rows[own] if key in rows[other]]
                    where = f"{PLACES[place]}, K = {count}"
                    lines.append(f"{where}: {own.strip('*')} - {other}: {figure(apart, '+')}")
    return lines


if __name__ == "__main__":
    main()
