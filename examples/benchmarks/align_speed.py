"""How long it takes to bring independent nets into one frame by their weights, and how much memory.

    python examples/benchmarks/align_speed.py [--arch resnet50] [--teachers 6] [--runs 3]

The nets have timm's own random starts, each of another seed: nothing in them is alike, the order of every space has to
be found. What is timed is the whole of `wfcli fuse --method aligned-soup`, proof that every net is what it was and
writing included, beside the plain soup of the same files, and following the graph of one of them: what the process
holds beside nets, with timm and torch.export. Results: examples/results/align_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

from start_and_soup import PACKAGES, WFCLI, machine, run

RESULTS = Path(__file__).parents[1] / "results" / "align_speed.json"
MAKE = """
import sys, torch
from pathlib import Path
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import save_state
arch, *paths = sys.argv[1:]
for seed, path in enumerate(paths):
    torch.manual_seed(seed)
    save_state(Path(path), build_model(find_architecture(arch), 1000).state_dict(), {})
"""


def main() -> None:
    """Make the nets, time both merges in turns, print and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--teachers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"net-{number}.safetensors") for number in range(options.teachers)]
        subprocess.run([sys.executable, "-c", MAKE, options.arch, *paths], check=True)
        size = Path(paths[0]).stat().st_size
        fuse = [WFCLI, "fuse", *paths, "--arch", options.arch, "-o", str(Path(folder) / "student.safetensors")]
        commands = {
            "the graph of one": [WFCLI, "inspect", paths[0], "--plan"],
            "soup, as they are": [*fuse, "--method", "soup", "--align", "none"],
            "aligned by weights": [*fuse, "--method", "aligned-soup", "--align", "weights"],
        }
        before = os.getloadavg()
        found = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                found[name].append(asdict(run(command)))
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "load_before_and_after": [before, os.getloadavg()],
        "arch": options.arch,
        "teachers": options.teachers,
        "bytes_of_a_net": size,
        "runs": found,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, runs in found.items():
        wall, memory = (median(one[key] for one in runs) for key in ("wall", "memory"))
        print(f"{options.teachers} x {options.arch} ({size / 1e6:.0f} MB), {name}: {wall:.1f} s, {memory:,.0f} MB")


if __name__ == "__main__":
    main()
