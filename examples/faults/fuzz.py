"""Hostile and broken files by the hundred thousand: each is read correctly or refused by an error of ours, or found.

    python examples/faults/fuzz.py --inputs 200000                 # all targets, some by the whole command line
    python examples/faults/fuzz.py --inputs 5000 --target pickle   # one of them, or several
    python examples/faults/fuzz.py --inputs 200000 --guided 50000  # and atheris on the readers of bytes

Inputs are mutations of valid files (`tests/hostile`), made anew from seed and number: ``--target T --only N`` reads a
single one again, here, with its traceback. The results go to examples/results/fuzz.json and fuzz.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "examples" / "faults")]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", COLUMNS="100")
COMMANDS = 300  # inputs that go through the whole command line, of all targets that have one
PACKAGES = ("torch", "timm", "datasets", "pyarrow", "pillow", "torchvision", "huggingface-hub", "safetensors")


def main() -> None:
    """Run what the options ask for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of all targets together")
    parser.add_argument("--target", action="append", help="only this one; repeat for more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=COMMANDS, help="inputs for the whole command line")
    parser.add_argument("--guided", type=int, default=0, help="inputs of atheris for each reader of bytes")
    parser.add_argument("--only", type=int, help="number of the one input to read, here")
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "results" / "fuzz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_HOME"] = cache
        if options.only is not None:
            read_one(options.target[0], options.seed, options.only)
            return
        write(options.output, measure(options))


def read_one(name: str, seed: int, number: int) -> None:
    """Read one input in this process, where an error keeps its traceback."""
    from tests import hostile

    with tempfile.TemporaryDirectory() as place:
        target = hostile.targets()[name]
        hostile.make(target, name, seed, number, Path(place))
        print(*(f"{path.name}: {path.lstat().st_size} bytes" for path in sorted(Path(place).rglob("*"))), sep="\n")
        print(hostile.judge(target, Path(place)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all targets, a sample of command lines, and the guided fuzzer if it is asked for."""
    import guided
    import watch
    from bench import machine

    from tests import hostile

    load_all()
    targets = hostile.targets()
    chosen = {name: targets[name] for name in options.target or targets}
    whole = sum(target.share for target in chosen.values())
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in PACKAGES},
        "seed": options.seed,
        "targets": {},
        "commands": {},
        "guided": {},
    }
    for name, target in chosen.items():
        count = max(1, round(options.inputs * target.share / whole))
        result["targets"][name] = tell(name, watch.run(name, options.seed, range(count)))
    spoken = [name for name, target in chosen.items() if target.command is not None]
    for name in spoken:
        count = options.commands // len(spoken)
        numbers = range(10**6, 10**6 + count)  # others than above
        result["commands"][name] = tell(f"{name}, command line", watch.run(name, options.seed, numbers, commands=True))
    if options.guided and not guided.installed():
        print("atheris is not installed: no guided fuzzing (pip install 'wfcli[fuzz]')")
    elif options.guided:
        for reader in guided.READERS:
            result["guided"][reader] = guided.run(reader, options.guided, options.seed)
            print(f"{reader}, guided: {result['guided'][reader]}", flush=True)
    return result


def load_all() -> None:
    """Import what is read with before the processes are forked: each would import it again."""
    import datasets  # noqa: F401
    import timm  # noqa: F401
    import torchvision.io  # noqa: F401

    from wfcli import cli, report  # noqa: F401
    from wfcli.core import data, generator_files, timm_config, zoo_recipes  # noqa: F401
    from wfcli.engine import fuse, inspect, own_architecture, push, recipe  # noqa: F401


def tell(name: str, tally: Any) -> dict[str, Any]:
    """Print a line of one target and return what is kept of it."""
    rate = tally.inputs / max(tally.seconds, 1e-9)
    print(f"{name}: {tally.inputs} inputs, {len(tally.findings)} findings, {rate:.0f}/s", flush=True)
    for found in tally.findings[:20]:
        print(f"    {found['number']}: {found['what']}", flush=True)
    kept = asdict(tally)
    return {**kept, "findings": kept["findings"][:50], "found": len(kept["findings"]), "rate": round(rate, 1)}


def write(stem: Path, result: dict[str, Any]) -> None:
    """Write the results as JSON and as a table."""
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(result))
    print(stem.with_suffix(".md").read_text())


def page(result: dict[str, Any]) -> str:
    """Write the table: a line a target."""
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rows = [*result["targets"].items()]
    rows += [(f"{name}, by `wfcli`", one) for name, one in result["commands"].items()]
    whole = sum(one["inputs"] for _, one in rows) + sum(one["inputs"] for one in result["guided"].values())
    found = sum(one["found"] for _, one in rows) + sum(len(one["findings"]) for one in result["guided"].values())
    made = f"`examples/faults/fuzz.py`, {result['date']}, seed {result['seed']}; {result['machine']}; "
    what = (
        "A finding is an error that is not ours, more than 10 s, more than 1 GB beyond what the process had, a crash, "
        "anything run, or anything written outside the folder for it."
    )
    lines = [
        "# Hostile and broken files",
        "",
        f"{made}Python {result['python']}, {packages}.",
        "",
        f"{whole:,} inputs, {found:,} findings. {what}",
        "",
        "| files | inputs | read | refused | findings | slowest, s | memory, MB | inputs/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {one['inputs']:,} | {one['accepted']:,} | {one['refused']:,} | {one['found']:,} | "
            f"{one['slowest'][0]:.2f} | {one['memory'][0] / 1e6:.0f} | {one['rate']:,.0f} |"
            for name, one in rows
        ),
        *(
            f"| {name}, guided by coverage | {one['inputs']:,} |  |  | {len(one['findings']):,} |  |  |  |"
            for name, one in result["guided"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
