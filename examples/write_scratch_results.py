"""Put what a finished examples/scratch_teachers.sh measured where it is read: examples/results/ and the README's table.

Every mean is over sets of teachers, a generator's figure of a set over its seeds; behind the ± stands half the 95 %
interval of the mean over the sets (Student's t). The sets share their six teachers.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from write_silo_results import HERE, README, Rows, figure, rows_of

mpl.use("svg")
from matplotlib import pyplot as plt

KINDS = {
    "vgg11": "VGG-11",
    "vgg11_bn": "VGG-11 (BatchNorm)",
    "vgg11_bn_split": "VGG-11 (BatchNorm), split data",
    "resnet18": "ResNet-18",
    "vit": "Transformer",
}
COUNTS = (2, 4, 6)
STEPS = (100, 300, 1000)
# Row of the tables -> row of the figures.
ROWS = {
    "mean single": "mean single",
    "best single (by validation)": "best single (by validation)",
    "ensemble": "ensemble",
    "average as they are": "average as they are",
    "average as they are, repaired": "average as they are, repaired",
    "average as they are, least squares": "as they are, least squares",
    "**aligned by weights**": "aligned by weights",
    "**aligned by weights, mended without images**": "aligned by weights, mended without images",
    "aligned by weights, repaired": "aligned by weights, repaired",
    "aligned by weights, least squares": "aligned by weights, least squares",
    "aligned by activations": "aligned by activations",
    "aligned by activations, repaired": "aligned by activations, repaired",
    "**aligned by activations, least squares**": "aligned by activations, least squares",
    "aligned by activations of 1,000 images, least squares": "aligned by activations of 1,000 images, least squares",
    "generator `universal`, as shipped, data-free": "generator shipped, data-free",
    "generator `universal`, as shipped, calibrated": "generator shipped, calibrated",
    "generator `universal`, data-free": "generator universal, data-free",
    "generator `universal`, calibrated": "generator universal, calibrated",
    "generator `specialised`, data-free": "generator specialised, data-free",
    "generator `specialised`, calibrated": "generator specialised, calibrated",
    "control: generator `specialised`, destroyed teachers": "control: generator specialised, destroyed teachers",
}
# The README's.
SHORT = (
    "mean single",
    "ensemble",
    "average as they are",
    "aligned by weights, repaired",
    "aligned by activations, repaired",
    "**aligned by activations, least squares**",
    "aligned by activations of 1,000 images, least squares",
    "generator `specialised`, calibrated",
    "control: generator `specialised`, destroyed teachers",
)
SHORT_COUNTS = (2, 6)
STARTS = (
    "best single",
    "average as they are, repaired",
    "aligned by weights, repaired",
    "aligned by weights, least squares",
    "aligned by activations, repaired",
    "aligned by activations, least squares",
    "generator specialised",
    "scratch",
)
STUDENTS = tuple(row for row in ROWS if "single" not in row and row != "ensemble" and "control" not in row)
HEAD = """# examples/scratch_teachers.sh: all tables

Top-1 in %, 2,000 test images of CIFAR-10. Nets of one recipe from different random starts, the VGGs at a quarter of
their width for four epochs (on split data, each on its own Dirichlet-0.3 share, for eight), the ResNet at an eighth
and the Transformer at two thirds of a tiny one for three; six of each kind, at most five sets of K. Repaired:
BatchNorm statistics of 1,000 images, or REPAIR where there is no BatchNorm. Least squares: layers fitted on 1,000
unlabelled images. Aligning by activations looks at 256 of them. Generators have learned from six other nets of the
kind, without a choice of the seed; the shipped one from other tasks. Steps of distillation are those of `finetune`:
64 images with their labels and the ensemble's answers, each start at its best of three rates. The raw numbers are in
the JSON files beside this page.

"""


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of scratch_teachers.sh")
    runs: Path = parser.parse_args().runs
    paths = {kind: runs / f"{kind}.json" for kind in KINDS if (runs / f"{kind}.json").exists()}
    if not paths:
        raise SystemExit(f"{runs}: no tables there, expected vgg11.json and others of examples/scratch_teachers.sh")
    known = {**committed(), **{kind: json.loads(path.read_text()) for kind, path in paths.items()}}
    results = {kind: known[kind] for kind in KINDS if kind in known}
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- scratch table -->\n).*(<!-- end of scratch table -->)", re.DOTALL)
    text, found = marks.subn(lambda mark: mark[1] + short(results) + mark[2], text)
    if found != 1:
        raise SystemExit("README.md lacks <!-- scratch table --> and <!-- end of scratch table -->")
    README.write_text(text, encoding="utf-8")
    for kind, result in results.items():
        (HERE / "results" / f"scratch_teachers_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "scratch_teachers.md").write_text(page(results))
    picture(results).savefig(HERE / "results" / "scratch_line.svg", metadata={"Date": None})
    print("\n".join(differences(results)))


def committed() -> dict[str, Any]:
    """Return the results in examples/results/."""
    files = {kind: HERE / "results" / f"scratch_teachers_{kind}.json" for kind in KINDS}
    return {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}


def page(results: Mapping[str, Any]) -> str:
    """Write all tables, with date, machine and versions."""
    one = next(iter(results.values()))
    parts = [
        f"{HEAD}{one['date']}; {one['machine']}; wfcli {one['wfcli']}, torch {one['torch']}, timm {one['timm']}.\n"
    ]
    for kind, result in results.items():
        parts.append(f"## {KINDS[kind]}\n\n{table({kind: result}, COUNTS)}")
        parts.append(f"Four teachers, then distillation of their ensemble:\n\n{distilled(result)}")
    parts.append("## Differences\n\n" + "\n".join(f"- {line}" for line in differences(results)) + "\n")
    parts.append(
        "## Along the straight line between two nets\n\n![Loss along the line between two nets](scratch_line.svg)\n"
    )
    return "\n".join(parts)


def short(results: Mapping[str, Any]) -> str:
    """Write the README's table: some rows, a column for each kind of net, K = 2 and K = 6 in one cell."""
    columns = {
        KINDS[kind]: [rows_of(result, "scratch", count) for count in SHORT_COUNTS] for kind, result in results.items()
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label in SHORT:
        pairs = [[figure(list(rows.get(ROWS[label], {}).values())) for rows in pair] for pair in columns.values()]
        lines.append(f"| {label} | " + " | ".join(" / ".join(pair) if all(pair) else "" for pair in pairs) + " |")
    return "\n".join(lines) + "\n"


def table(results: Mapping[str, Any], counts: Sequence[int]) -> str:
    """Write students and baselines, a column for each kind of net and K."""
    columns = {
        f"{KINDS[kind]}, K = {count}": rows_of(result, "scratch", count)
        for kind, result in results.items()
        for count in counts
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label, row in ROWS.items():
        cells = [figure(list(rows.get(row, {}).values())) for rows in columns.values()]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def distilled(result: Mapping[str, Any]) -> str:
    """Write what steps of distillation reach from each start, one set of four teachers."""
    rows = rows_of(result, "scratch", 4)
    lines = ["| start | " + " | ".join(f"{steps:,} steps" for steps in STEPS) + " |", "|---|" + "---:|" * len(STEPS)]
    for start in STARTS:
        found = [rows.get(f"{steps} steps of distillation from {start}", {}) for steps in STEPS]
        if any(found):
            lines.append(f"| {start} | " + " | ".join(figure(list(values.values())) for values in found) + " |")
    return "\n".join(lines) + "\n"


def differences(results: Mapping[str, Any]) -> list[str]:
    """Say how far the best student without gradient steps is from single and ensemble, and how it goes with K."""
    lines = []
    for kind, result in results.items():
        best = {}
        for count in COUNTS:
            rows = rows_of(result, "scratch", count)
            own = {label: rows[ROWS[label]] for label in STUDENTS if ROWS[label] in rows}
            if not own:
                continue
            top = max(own, key=lambda label: sum(own[label].values()) / len(own[label]))
            best[count] = 100 * sum(own[top].values()) / len(own[top])
            for other in ("mean single", "ensemble"):
                apart = difference(own[top], rows, other)
                where = f"{KINDS[kind]}, K = {count}"
                lines.append(f"{where}: best student (chosen here: {top.strip('*')}) - {other}: {apart}")
        if 2 in best and 6 in best:
            lines.append(f"{KINDS[kind]}: best student, K = 6 less K = 2: {best[6] - best[2]:+.1f}")
    return lines


def difference(own: Mapping[str, float], rows: Rows, other: str) -> str:
    """Write by how much a row is above another one, set by set."""
    return figure([own[key] - rows[other][key] for key in own if key in rows[other]], "+")


def picture(results: Mapping[str, Any]) -> plt.Figure:
    """Draw the loss along the straight line between two nets, as they are and aligned, repaired or not."""
    plt.rcParams.update({"svg.hashsalt": "wfcli", "font.size": 8})
    drawn, panels = plt.subplots(
        1, len(results), figsize=(2.4 * len(results), 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    looks = {"as they are": ("#c05a3c", "-"), "as they are, repaired": ("#c05a3c", ":"), "aligned": ("#4878a8", "-")}
    looks["aligned, repaired"] = ("#4878a8", ":")
    for axes, (kind, result) in zip(panels[0], results.items(), strict=True):
        for way, (colour, dashes) in looks.items():
            points = {
                float(key.rpartition("/")[2]): value
                for key, value in result["figures"].items()
                if key.rpartition("/")[0] == f"line/{way}"
            }
            axes.plot(sorted(points), [points[at] for at in sorted(points)], dashes, color=colour, label=way)
        axes.set(title=KINDS[kind], xlabel="from one net to the other", ylim=(0, 5))
    panels[0][0].set_ylabel("NLL on test images")
    panels[0][0].legend()
    return drawn


if __name__ == "__main__":
    main()
