"""Put what full_table.py measured where it is read: examples/results/full.md and the README's table.

    python examples/benchmarks/write_full_results.py

reads examples/results/full_*.json. Every mean is over sets of teachers; behind the ± stands half the 95 % interval of
the mean over the sets (Student's t), which share teachers.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

from write_silo_results import README, figure

RESULTS = Path(__file__).resolve().parents[1] / "results"
NETS = {"vgg11": "VGG-11", "resnet50": "ResNet-50", "vit_b_32": "ViT-B/32"}
ZOOS = {
    "base/same": "one base, same images",
    "base/split": "one base, split images",
    "scratch/same": "from scratch, same images",
    "scratch/split": "from scratch, split images",
}
CORRUPTIONS = ("noise", "blur", "contrast", "JPEG", "brightness")
OWN = ("generator specialised", "generator weightformer", "generator specialised-scratch")  # the paper's students
Sets = dict[str, float]  # set -> value
MARKS = re.compile(r"(<!-- full table -->\n).*(<!-- end of full table -->)", re.DOTALL)


def main() -> None:
    """Write page and table."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("full_*.json"))]
    if not results:
        raise SystemExit(f"{RESULTS}: no full_*.json there; examples/benchmarks/full_table.py makes them")
    (RESULTS / "full.md").write_text(page(results), encoding="utf-8")
    text, found = MARKS.subn(lambda mark: mark[1] + claims(results) + mark[2], README.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit("README.md lacks <!-- full table --> and <!-- end of full table -->")
    README.write_text(text, encoding="utf-8")


def page(results: list[dict[str, Any]]) -> str:
    """Write all pieces, each with its tables and what it cost."""
    parts = ["# examples/benchmarks/full_table.py: all pieces\n", claims(results)]
    for result in results:
        net = result["architecture"]
        args = ", ".join(f"{key}={value}" for key, value in net["args"].items())
        parts.append(f"## {title(result)}\n\n`{net['name']}`{f' ({args})' if args else ''}; {result['date']}; ")
        parts[-1] += f"{result['machine']}; wfcli {result['wfcli']}, torch {result['torch']}, timm {result['timm']}; "
        parts[-1] += "complete." if result["complete"] else "**not complete**."
        for zoo, what in ZOOS.items():
            if any(key.startswith(f"{zoo}/") for key in result["figures"]):
                parts += [f"### {what}\n", top1(result, zoo), quality(result, zoo)]
        parts.append(f"### What it cost\n\n{costs(result)}")
    return "\n".join(parts)


def title(result: Mapping[str, Any]) -> str:
    """Name a piece."""
    small = "" if result["scale"] == "full" else ", reduced"
    return f"{NETS[result['arch']]}{small}, {result['dataset']}"


def rows_of(result: Mapping[str, Any], zoo: str, count: int, metric: str) -> dict[str, Sets]:
    """Return a metric of every row by set; the single teachers of a set are their mean."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, value in result["figures"].items():
        if key.startswith(f"{zoo}/{count}/") and key.endswith(f"/{metric}") and "/rate/" not in key:
            draw, row = key.removeprefix(f"{zoo}/{count}/").removesuffix(f"/{metric}").split("/", 1)
            found[re.sub(r"^single \d+$", "mean single", row)][draw].append(value)
    return {row: {draw: fmean(values) for draw, values in sets.items()} for row, sets in found.items()}


def table(head: list[str], lines: Mapping[str, list[str]]) -> str:
    """Write a table of Markdown."""
    text = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    return "\n".join([*text, *(f"| {row} | " + " | ".join(cells) + " |" for row, cells in lines.items())]) + "\n"


def top1(result: Mapping[str, Any], zoo: str) -> str:
    """Write top-1 in %, a column for each number of teachers."""
    counts = sorted({int(key.split("/")[2]) for key in result["figures"] if key.startswith(f"{zoo}/")})
    columns = [rows_of(result, zoo, count, "top1") for count in counts]
    names = dict.fromkeys(row for column in columns for row in column)
    lines = {row: [figure(list(column.get(row, {}).values())) for column in columns] for row in names}
    return "Top-1 in %:\n\n" + table([f"K = {count}" for count in counts], lines)


def quality(result: Mapping[str, Any], zoo: str) -> str:
    """Write NLL, ECE, top-1 under corruptions, seconds and images, of sets of four."""
    metrics = ("nll", "ece", *CORRUPTIONS, "seconds", "images")
    found = {metric: rows_of(result, zoo, 4, metric) for metric in metrics}
    lines = {}
    for row in found["nll"]:
        values = {metric: list(found[metric].get(row, {}).values()) for metric in metrics}
        cells = [f"{fmean(values['nll']):.3f}", f"{100 * fmean(values['ece']):.1f}" if values["ece"] else ""]
        cells += [figure(values[metric][:1]) for metric in CORRUPTIONS]
        cells += [
            f"{fmean(values['seconds']):.2f}" if values["seconds"] else "",
            f"{max(values['images'] or [0]):,.0f}",
        ]
        lines[row] = cells
    head = ["NLL", "ECE %", *(f"{name} %" for name in CORRUPTIONS), "seconds", "images"]
    told = "K = 4; top-1 under corruptions (mean of three strengths), first set; training images seen for the set:\n\n"
    return told + table(head, lines)


def costs(result: Mapping[str, Any]) -> str:
    """Write what each stage cost."""
    lines = {name: [f"{cost['seconds']:.0f}", f"{cost['images']:,}"] for name, cost in result.get("costs", {}).items()}
    return table(["seconds", "training images"], lines)


def claims(results: list[dict[str, Any]]) -> str:
    """Hold the paper's claims against every piece, K = 4: the best of its students by mean top-1, less another row."""
    head = ["single", "ensemble", "student (chosen here)", "- single", "- distillation, same steps as its tuning",
            "- ensemble", "tuned - ensemble"]  # fmt: skip
    lines = {}
    for result in results:
        for zoo, what in ZOOS.items():
            rows = rows_of(result, zoo, 4, "top1")
            own = {row: sets for row, sets in rows.items() if row in OWN}
            if not own:
                continue
            name, best = max(own.items(), key=lambda one: fmean(one[1].values()))
            tuned = next((sets for row, sets in rows.items() if row.endswith(f"distillation from {name}")), {})
            plain = next((sets for row, sets in rows.items() if "distillation from scratch" in row), {})
            lines[f"{title(result)}, {what}"] = [
                figure(list(rows["mean single"].values())),
                figure(list(rows["ensemble"].values())),
                f"{name.removeprefix('generator ')} {figure(list(best.values()))}",
                verdict(best, rows["mean single"]),
                verdict(best, plain),
                verdict(best, rows["ensemble"], least=-0.01),
                verdict(tuned, rows["ensemble"]),
            ]
    return table(head, lines)


def verdict(one: Sets, other: Sets, least: float = 0.0) -> str:
    """Write the difference, set by set, and whether its mean is above `least`."""
    apart = [one[key] - other[key] for key in one if key in other]
    return f"{figure(apart, '+')} {'✓' if fmean(apart) > least else '✗'}" if apart else ""


if __name__ == "__main__":
    main()
