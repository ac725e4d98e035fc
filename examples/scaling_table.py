"""The figures of examples/scaling.sh: students of silo teachers of new tasks, without data, of every generator.

Goes on where it was interrupted, like silo_table.py, whose sets of teachers and rows these are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from bench import fused, top1
from silo_table import TESTS, Figures, Pair, known, note, open_bench, pairs, trained, write_figures

from wfcli.core.generator import WeightFormer
from wfcli.core.methods import soup
from wfcli.core.metrics import ensemble, score

COUNTS = (3, 6)


def main() -> None:
    """Fill in what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the work folder of silo_teachers.sh and scaling.sh")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    generators, digests = trained(options.runs / "scaling", lambda name: True)
    done = known(options.output, digests)
    for name, generator in generators.items():
        done[f"parameters/{name}"] = sum(p.numel() for p in generator.parameters())
    for name in TESTS:
        bench = open_bench(options.runs / "vgg" / name)
        for count in COUNTS:
            for pair in pairs(bench, "dirichlet 0.3", name, count):
                fill(pair, generators, done)
            write_figures(options.output, "scaling_table", bench.zoo.architecture, digests, done)
        print(f"{name}: done", flush=True)


def fill(pair: Pair, generators: Mapping[str, WeightFormer], done: Figures) -> None:
    """Fill in the rows of one set of teachers."""
    bench = pair.bench
    said = bench.test_log_probs[list(pair.index)]
    note(done, pair.key, "ensemble", lambda: score(ensemble(said), bench.test.labels).top1)
    note(done, pair.key, "soup, data-free", lambda: top1(bench, soup(pair.states), bench.test))
    for name, generator in generators.items():
        row = f"generator {name}, data-free"
        note(done, pair.key, row, lambda g=generator: top1(bench, fused(bench, g, pair.states), bench.test))


if __name__ == "__main__":
    main()
