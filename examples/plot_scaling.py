"""Short plots of what examples/scaling.sh measured: gain over the soup against tasks, teachers and parameters.

Means over the sets of teachers and the seeds of the generator; bars: half the 95 % interval of the mean over the sets.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from write_silo_results import HERE, Values, half

mpl.use("svg")
from matplotlib import pyplot as plt

COUNTS = {3: "#4878a8", 6: "#c05a3c"}
# What varies -> the generators, from the least on; tasks-10 is the usual one.
ROWS = {
    "tasks": {"tasks-3": 3, "tasks-5": 5, "tasks-7": 7, "tasks-10": 10},
    "teachers of each task": {"teachers-2": 2, "teachers-4": 4, "tasks-10": 6},
    "parameters": dict.fromkeys(("size-8x1", "size-16x2", "tasks-10", "size-64x2", "size-64x4"), 0),
}


def main() -> None:
    """Draw, and put the figures beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of scaling.sh")
    path = parser.parse_args().runs / "scaling.json"
    if not path.exists():
        raise SystemExit(f"{path}: not there, expected the table of examples/scaling.sh")
    result = json.loads(path.read_text())
    target = HERE / "results" / "scaling.svg"
    target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    picture(result).savefig(target, metadata={"Date": None})
    print("\n".join(lines(result)))


def gains(result: Mapping[str, Any], count: int) -> dict[str, Values]:
    """Return generator -> set of teachers -> gain over the soup without data, mean over the seeds; ensemble too."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, value in result["figures"].items():
        place, _, row = key.rpartition("/")
        if not re.fullmatch(rf".+/{count}/\d+", place):
            continue
        name = re.fullmatch(r"generator (.+)-\d, data-free", row)
        if name or row == "ensemble":
            soup = result["figures"][f"{place}/soup, data-free"]
            rows[name[1] if name else row][place].append(value - soup)
    return {name: {place: fmean(values) for place, values in sets.items()} for name, sets in rows.items()}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Write every point of the plots."""
    written = []
    for count in COUNTS:
        for name, values in gains(result, count).items():
            parameters = result["figures"].get(f"parameters/{name}-0")
            size = f" ({parameters:,.0f} parameters)" if parameters else ""
            gain = list(values.values())
            written.append(f"K = {count}: {name}{size}: {100 * fmean(gain):+.1f} ± {100 * half(gain):.1f}")
    return written


def picture(result: Mapping[str, Any]) -> plt.Figure:
    """Draw gain against tasks and teachers, and against size."""
    plt.rcParams.update({"svg.hashsalt": "wfcli", "font.size": 8})
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
    for axes, (what, names) in zip(panels, ROWS.items(), strict=True):
        for count, colour in COUNTS.items():
            found = gains(result, count)
            known = [name for name in names if name in found]
            at = [names[name] or result["figures"][f"parameters/{name}-0"] for name in known]
            points = [list(found[name].values()) for name in known]
            axes.errorbar(
                at,
                [100 * fmean(values) for values in points],
                [100 * half(values) for values in points],
                color=colour,
                marker="o",
                capsize=3,
                label=f"K = {count}",
            )
            axes.axhline(100 * fmean(found["ensemble"].values()), color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel=what, xscale="log" if what == "parameters" else "linear")
    panels[0].set_ylabel("points over the soup (dotted: ensemble)")
    panels[0].legend()
    return figure


if __name__ == "__main__":
    main()
