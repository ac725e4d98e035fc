"""Break it on purpose: what `wfcli` survives, as a table.

    python examples/faults/faults.py [--part NAME ...] [--trials 50] [--seed 0] [--folder DIR]

Every trial is the real command line in a process of its own, on nets of 0.15 M parameters and scikit-learn's digits,
that is killed, starved, locked out or lied to; then its files are compared, byte by byte, with those of a run that
nobody disturbed. Parts can be run one by one: each replaces its own rows in examples/results/faults.json, from which
faults.md is written. Mounting a small disk and making a folder read-only for root need root; where that is not to be
had, a limit on the size of files stands in for the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import inputs
import kills
import places
from rig import Part, Rig, Row

RESULTS = Path(__file__).resolve().parents[1] / "results" / "faults.json"
PACKAGES = ("wfcli", "torch", "timm", "typer", "huggingface-hub")
PARTS: dict[str, Part] = {
    "kill-fuse": lambda rig: kills.kills(rig, "fuse", "fuse --max-shard-size"),
    "kill-finetune": lambda rig: kills.kills(rig, "finetune"),
    "kill-train-generator": lambda rig: kills.kills(rig, "train-generator"),
    "kill-train-teachers": lambda rig: kills.kills(rig, "train-teachers", "train-teachers --jobs 2"),
    "kill-push": kills.push,
    "stop": kills.stops,
    "full": places.full,
    "read-only": places.read_only,
    "same": places.same_as_input,
    "two": places.two_writers,
    "changed": inputs.changed,
    "readers": inputs.readers,
}


def main() -> None:
    """Run the parts that are asked for, write the table, and fail if anything was lost."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would hand down its deafness
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="repeat for more; all of them unless given")
    parser.add_argument("--trials", type=int, default=50, help="of what happens at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rig = Rig(Path(folder).resolve(), options.trials, options.seed)
        lost = sum(len(row.lost) for part in options.part or PARTS for row in measure(part, rig, options.out))
    print(options.out.with_suffix(".md").read_text(encoding="utf-8"))
    raise SystemExit(1 if lost else 0)


def measure(part: str, rig: Rig, out: Path) -> list[Row]:
    """Run one part and put its rows in the place of those that it had."""
    print(part, flush=True)
    began = time.monotonic()
    rows = PARTS[part](rig)
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    result[part] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "trials": rig.trials,
        "seed": rig.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rows": [{**asdict(row), "survived": row.tried - len(row.lost)} for row in rows],
    }
    ordered = {name: result[name] for name in PARTS if name in result}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(ordered), encoding="utf-8")
    return rows


def machine() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def page(result: dict[str, Any]) -> str:
    """Write faults.md."""
    lines = ["# Faults\n", "Made by `examples/faults/faults.py`; what each part does stands there.\n"]
    lines += ["| fault | verb | tried | survived | lost |", "|---|---|---:|---:|---|"]
    rows = [row for part in result.values() for row in part["rows"]]
    for row in rows:
        lost = "<br>".join(one.replace("|", "/") for one in row["lost"]) or "–"
        lines.append(f"| {row['fault']} | {row['verb']} | {row['tried']} | {row['survived']} | {lost} |")
    tried, survived = (sum(row[key] for row in rows) for key in ("tried", "survived"))
    lines.append(f"| **all** | | {tried} | {survived} | {tried - survived} |")
    lines += ["\nSurvived means:\n", *dict.fromkeys(f"- {row['fault']}: {row['expected']}." for row in rows)]
    lines += ["", *_notes(rows), "", *_made(result)]
    return "\n".join(lines) + "\n"


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"- {row['fault']}, {row['verb']}: {note}." for row in rows for note in row["notes"]]


def _made(result: dict[str, Any]) -> list[str]:
    """Say when and where, once for parts that were run together."""
    made: dict[str, list[str]] = {}
    for name, part in result.items():
        versions = ", ".join(f"{package} {number}" for package, number in part["versions"].items())
        what = f"{part['date']}, {part['machine']}, {versions}, {part['trials']} trials, seed {part['seed']}"
        made.setdefault(what, []).append(f"{name} ({part['minutes']} minutes)")
    return [f"{', '.join(names)}: {what}." for what, names in made.items()]


if __name__ == "__main__":
    main()
