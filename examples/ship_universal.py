"""Put the best generator for all kinds of nets of same_teachers.sh into pretrained/universal, with card and entry.

The best is the one with the highest gain on the held-out zoos of its training log; test images play no part in it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from write_same_results import COUNTS, named, rows_of, table
from write_silo_results import HERE, KINDS, one_shot_table

from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import file_digest
from wfcli.core.generator_files import WEIGHTS, load_generator, save_generator
from wfcli.core.pretrained import Pretrained, Result, describe_generator, write_entry
from wfcli.core.zoo import Zoo, read_zoo

TARGET = Path(__file__).parent.parent / "pretrained" / "universal"
DATASET = "uoft-cs/cifar100"
SILO_COUNTS = (3, 6)
ROWS = {"soup": "soup, data-free", "ensemble": "ensemble"}  # of the index, beside the generator's own
SHOWN = (
    "best single (by validation)",
    "soup, data-free",
    "soup, calibrated",
    "best of nine simple heuristics (chosen here)",
    "**one generator for all three kinds, data-free**",
    "one generator for all three kinds, calibrated",
    "generator for all kinds, data-free, `--probes 2000`",
    "ensemble",
)
SAME_SHOWN = (
    "best single (by validation)",
    "soup, data-free",
    "soup, calibrated",
    "greedy soup, calibrated",
    "best of nine simple rules (chosen here), calibrated",
    "best of five robust rules (chosen here), calibrated",
    "**one generator for all three kinds, data-free**",
    "one generator for all three kinds, calibrated",
    "ensemble",
)
CARD = """---
library_name: wfcli
license: apache-2.0
datasets:
- uoft-cs/cifar100
tags:
- model-merging
- weightformer
---
# WeightFormer `universal`

The default generator of `wfcli fuse`: it reads scale-free statistics of the teachers' weights and mixes the teachers,
weight by weight. {parameters:,} parameters; no weight of any net is stored in it. After Meta-Ensemble Parameter
Learning (arXiv 2210.01973).

## Results

Top-1 in %, on tasks, images and teachers that no generator was trained on: three tasks of ten of the CIFAR-100 classes
85-99 and CIFAR-10. K teachers, fine-tunes of one base. Mean over five subsets of the teachers of each task and {seeds}
of the generator (with probes: one), ± half the 95 % interval of the mean over (task, subset).

Each teacher on its own Dirichlet-0.3 share of the images:

{split}
All on the same images; half of the teachers at hand are spoilt (half of the labels wrong, noise on the weights, a rate
eight times too high, a tenth of the epochs; four times the epochs, which does no harm):

{same}
Shipped is {name}, the best of {seeds} on the held-out zoos (gain over the soup there: {gain:.1f} points).

## Trained on

{count} zoos, each of fine-tunes of one base (CIFAR-100, classes 0-49) on ten of the classes 50-84: {labels}.
Every sixth served validation alone.

| nets | shares | zoos | teachers |
|---|---|---:|---:|
{zoos}

Subsets of 2 to 6 teachers, half of the time on some of the classes alone; BatchNorm half of the time with the
statistics of the batch, half with the running statistics that a data-free student has. First on the silos alone, then
on both.

## Limits

Fine-tunes of one base only. Nets of other kinds than these, and images far from photographs, are hardly tested: `fuse`
looks at the student and writes the soup where it finds that broken; a few hundred images without labels
(`--unlabelled`) help there. Images of 32 x 32 pixels and small nets in training. On silos of CIFAR-10 it stays below
the ensemble; it is above on the tasks of CIFAR-100, from whose other classes it has learned. Sound teachers of the same
data: the soup is near the ensemble already, and the student within half a point of it in the mean, up to a point below
on a single task. Spoilt ones get less weight, but not none.

Made by `examples/silo_teachers.sh`, `examples/same_teachers.sh` and `examples/ship_universal.py`.
"""


def main() -> None:
    """Copy the best generator and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of silo_teachers.sh and same_teachers.sh")
    runs: Path = parser.parse_args().runs
    folders = sorted(runs.glob("generators/both-[0-9]"))
    if not folders:
        raise SystemExit(f"{runs}: no generators/both-* there, expected those of examples/same_teachers.sh")
    gains = {folder: max(row["gain"] for row in read_log(folder)) for folder in folders}
    best = max(folders, key=lambda folder: gains[folder])
    generator, digest = load_generator(best, best.name)
    found = results(digest)
    zoos = [read_zoo(folder) for kind in KINDS for folder in sorted(runs.glob(f"{kind}/*task-*"))]
    split, same = (
        {kind: json.loads((runs / f"{name}{kind}.json").read_text()) for kind in KINDS} for name in ("", "same-")
    )
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    card = write_card(sum(p.numel() for p in generator.parameters()), zoos, split, same, gains[best], best.name, seeds)
    digest = save_generator(TARGET, generator, card)
    write_entry(describe_generator(TARGET, DATASET, found), TARGET.parent)
    print(f"{best.name} -> {TARGET.name}, sha256 {digest}")


def entry() -> Pretrained:
    """Describe what lies in pretrained/universal, for the index."""
    return describe_generator(TARGET, DATASET, results(file_digest(TARGET / WEIGHTS)))


def results(digest: str) -> list[Result]:
    """Take the figures of the index from examples/results/, where the weights of this digest were measured."""
    found = []
    for kind in KINDS:
        found += results_of(f"silo_teachers_{kind}.json", "dirichlet 0.3", SILO_COUNTS, "both", digest)
        found += results_of(f"same_teachers_{kind}.json", "any", COUNTS, "both", digest)
    return found


def results_of(
    table: str, group: str, counts: Sequence[int], generator: str, digest: str | None = None
) -> list[Result]:
    """Take what students reached from a file in examples/results/, which has measured the weights of `digest`.

    Raises:
        SystemExit: it has measured others.
    """
    measured = json.loads((HERE / "results" / table).read_text())
    if digest is not None and digest not in measured["generators"].values():
        got = ", ".join(f"{name} {one[:12]}" for name, one in measured["generators"].items())
        raise SystemExit(f"{table}: measured {got}, expected also {digest[:12]}: write the results of this run first")
    net = measured["architecture"]
    label = find_architecture(net["name"], net["args"]).label
    found = []
    for count in counts:
        rows = rows_of(measured, group, count)
        own = rows[f"generator {generator}, data-free"]
        means = {name: round(fmean(rows[row][each] for each in own), 4) for name, row in ROWS.items()}
        mean = round(fmean(own.values()), 4)
        found.append(Result(table, group, label, count, len(own), generator=mean, **means))
    return found


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the validation lines of a training."""
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [row for row in rows if "gain" in row]


def write_card(
    parameters: int,
    zoos: Sequence[Zoo],
    split: Mapping[str, Any],
    same: Mapping[str, Any],
    gain: float,
    name: str,
    seeds: str,
) -> str:
    """Return the card."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for zoo in zoos:
        shares = " ".join(str(zoo.shares[key]) for key in ("kind", "concentration") if zoo.shares[key] is not None)
        kinds[zoo.architecture.label, shares].append(len(zoo.teachers))
    spoilt = {
        f"{KINDS[kind]}, K = {count}": named(rows_of(result, "any", count), kind)
        for kind, result in same.items()
        for count in COUNTS
    }
    return CARD.format(
        parameters=parameters,
        split=one_shot_table(split, SHOWN, SILO_COUNTS),
        same=table(spoilt, SAME_SHOWN),
        name=name,
        seeds=seeds,
        gain=100 * gain,
        count=len(zoos),
        labels=", ".join(sorted({zoo.architecture.label for zoo in zoos})),
        zoos="\n".join(f"| {net} | {shares} | {len(n)} | {sum(n)} |" for (net, shares), n in sorted(kinds.items())),
    )


if __name__ == "__main__":
    main()
