"""Show what merge_speed.py measured: examples/results/merge_speed.md, its two pictures, and the README's table.

python examples/benchmarks/write_merge_speed.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from merge_speed import ARCHITECTURES, COUNTS, METHODS, RESULTS

mpl.use("svg")
from matplotlib import pyplot as plt

README = Path(__file__).resolve().parents[2] / "README.md"
MARKS = re.compile(r"(<!-- speed table -->\n).*(<!-- end of speed table -->)", re.DOTALL)
COLOURS = {"wfcli": "#4878a8", "mergekit": "#c05a3c"}
NAMES = {"resnet50": "ResNet-50", "vit_b_32": "ViT-B/32", "large": "ViT-g/14 (7.4 GB, in shards)"}


def main() -> None:
    """Write page, pictures and table."""
    if not RESULTS.exists():
        raise SystemExit(f"{RESULTS}: not there; merge_speed.py makes it")
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    mpl.rcParams.update({"svg.hashsalt": "wfcli", "font.size": 9})
    bars(known).savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})
    if "layers" in known:
        line(known["layers"]).savefig(RESULTS.with_name("merge_speed_layers.svg"), metadata={"Date": None})
    RESULTS.with_suffix(".md").write_text(page(known), encoding="utf-8")
    text, found = MARKS.subn(lambda mark: mark[1] + short(known) + mark[2], README.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit("README.md lacks <!-- speed table --> and <!-- end of speed table -->")
    README.write_text(text, encoding="utf-8")


def short(known: Mapping[str, Any]) -> str:
    """Write the README's table: the most teachers of each net, wfcli beside mergekit."""
    lines = ["| | wfcli, s | mergekit, s | wfcli, MB | mergekit, MB |", "|---|---:|---:|---:|---:|"]
    for part, count in most(known).items():
        for method in (*METHODS[part], *(["weightformer"] if part != "large" else [])):
            cells = [
                figure(known[part], f"{tool} {method} {count}", key)
                for key in ("wall", "memory")
                for tool in ("wfcli", "mergekit")
            ]
            lines.append(f"| {method} of {count} {NAMES[part]} | {' | '.join(cells)} |")
        if part == "large":
            name = "sha256sum of the inputs, one write"
            lines.append(f"| for comparison: {name} | {figure(known[part], name, 'wall')} | | | |")
    return "\n".join(lines) + "\n"


def most(known: Mapping[str, Any]) -> dict[str, int]:
    """Return the parts that were measured, with their largest number of teachers."""
    return {part: max(COUNTS[part]) for part in ARCHITECTURES if part in known}


def figure(found: Mapping[str, Any], name: str, key: str) -> str:
    """Return the median of a case, or why there is none."""
    runs = found["runs"].get(name)
    if not runs:
        return "fails" if name in found["failed"] else ""
    value = median(run[key] for run in runs)
    return f"{value:,.0f}" if key == "memory" else f"{value:,.1f}"


def bars(known: Mapping[str, Any]) -> plt.Figure:
    """Draw wall time and memory of each method, both tools, a column of panels for each net."""
    parts = most(known)
    picture, panels = plt.subplots(2, len(parts), figsize=(4 * len(parts), 5), squeeze=False, layout="constrained")
    for column, (part, count) in zip(panels.T, parts.items(), strict=True):
        methods = [*METHODS[part], *(["weightformer"] if part != "large" else [])]
        for panel, key, label in zip(column, ("wall", "memory"), ("seconds", "maximum resident set, MB"), strict=True):
            for place, tool in enumerate(COLOURS):
                runs = [known[part]["runs"].get(f"{tool} {method} {count}", []) for method in methods]
                heights = [median(run[key] for run in one) if one else 0 for one in runs]
                where = [number + 0.4 * place - 0.2 for number in range(len(methods))]
                panel.bar(where, heights, width=0.38, color=COLOURS[tool], label=tool)
            panel.set_xticks(range(len(methods)), methods)
            panel.set_ylabel(label)
            panel.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"{count} x {NAMES[part]}")
    panels[0, 0].legend(frameon=False)
    return picture


def line(layers: Mapping[str, Any]) -> plt.Figure:
    """Draw the generator's time for a layer against its channels, beside a straight line through the largest."""
    widths = [int(width) for width in layers["seconds"]]
    times = [1000 * seconds for seconds in layers["seconds"].values()]
    picture, panel = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    panel.plot(widths, [times[-1] * width / widths[-1] for width in widths], color="#999999", label="linear")
    panel.plot(widths, times, "o-", color=COLOURS["wfcli"], label="one layer of eight teachers")
    panel.set(xscale="log", yscale="log", xlabel=f"channels ({layers['fan_in']:,} weights each)", ylabel="ms")
    panel.set_xticks(widths, map(str, widths), minor=False)
    panel.minorticks_off()
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return picture


def page(known: Mapping[str, Any]) -> str:
    """Draw the tables, and what they say about the goals."""
    parts = ["# examples/benchmarks/merge_speed.py", "", "![Time and memory beside mergekit](merge_speed.svg)", ""]
    for part, arch in ARCHITECTURES.items():
        if part not in known:
            continue
        found = known[part]
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        loads = " and ".join(f"{load[0]:.1f}" for load in found["load_before_and_after"])
        number = max(len(runs) for runs in found["runs"].values())
        parts += [
            f"## {arch}, {found['student'] / 1e6:,.0f} MB each",
            "",
            f"{found['date']}; {found['machine']}; {versions}; mergekit {found['mergekit'] or 'not measured'};",
            f"load average {loads} before and after; median of {number} runs of whole processes (smallest to largest).",
            "",
            "| | wall time, s | processor time, s | maximum resident set, MB |",
            "|---|---:|---:|---:|",
            *(row(name, runs) for name, runs in found["runs"].items() if runs),
            *(f"| {name} | fails: {reason} | | |" for name, reason in found["failed"].items()),
            limit(found),
            "",
            *goals(part, known),
            "",
        ]
    if "layers" in known:
        parts += [
            "## One layer of eight teachers through the generator",
            "",
            "| channels | ms | µs a channel |",
            "|---:|---:|---:|",
        ]
        parts += [
            f"| {width} | {1000 * seconds:.1f} | {1e6 * seconds / int(width):.1f} |"
            for width, seconds in known["layers"]["seconds"].items()
        ]
        parts += ["", "![Time of a layer against its channels](merge_speed_layers.svg)", ""]
    return "\n".join(parts)


def row(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """Draw a row of the table."""

    def of(key: str, digits: int) -> str:
        values = [each[key] for each in runs]
        return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"

    return f"| {name} | {of('wall', 2)} | {of('processor', 2)} | {of('memory', 0)} |"


def limit(found: Mapping[str, Any]) -> str:
    """Say how long the bytes alone would take, from a disk that has to be read."""
    moved = max(found["bytes"].values())
    seconds = moved / found["disk"]["read"] + found["student"] / found["disk"]["write"]
    rates = f"read at {found['disk']['read'] / 1e9:.2f} GB/s, written at {found['disk']['write'] / 1e9:.2f} GB/s"
    return f"| the bytes alone, from the disk: {moved / 1e9:.1f} GB {rates} | {seconds:.2f} | | |"


def goals(part: str, known: Mapping[str, Any]) -> list[str]:
    """List what was promised of this part, and what was measured."""
    runs = known[part]["runs"]

    def of(name: str, key: str = "wall") -> float | None:
        return median(each[key] for each in runs[name]) if runs.get(name) else None

    most = max(COUNTS[part])
    asked = {
        "resnet50": [
            ("soup of 8: half of mergekit's time", of("wfcli soup 8"), of("mergekit soup 8"), 0.5),
            ("soup of 8: 0.6 of mergekit's memory", of("wfcli soup 8", "memory"), of("mergekit soup 8", "memory"), 0.6),
            ("soup of 8: `import torch` and 2 s", of("wfcli soup 8"), (of("import torch") or 0) + 2, 1.0),
            ("`--help`: 0.05 of mergekit's time", of("wfcli --help"), of("mergekit --help"), 0.05),
        ],
        "vit_b_32": [("weightformer of 8: five times the soup", of("wfcli weightformer 8"), of("wfcli soup 8"), 5.0)],
        "large": [
            (
                "soup: at least 0.7 of the rate of `sha256sum` and one write",
                of("wfcli soup 2"),
                of("sha256sum of the inputs, one write"),
                1 / 0.7,
            )
        ],
    }[part]
    if most > 2:
        asked += [
            (
                f"memory of {method} from 2 to 8 teachers: 5 % more",
                of(f"wfcli {method} 8", "memory"),
                of(f"wfcli {method} 2", "memory"),
                1.05,
            )
            for method in METHODS[part]
        ]
    lines = ["| promise | measured | at most | kept |", "|---|---:|---:|---|"]
    for what, got, other, factor in asked:
        if got is not None and other is not None:
            kept = "yes" if got <= factor * other else "no"
            lines.append(f"| {what} | {got:,.2f} | {factor * other:,.2f} | {kept} |")
    return lines


if __name__ == "__main__":
    main()
