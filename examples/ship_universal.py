"""Put the best generator for all kinds of nets of silo_teachers.sh into pretrained/universal, with a card.

The best is the one with the highest gain on the held-out zoos of its training log; test images play no part in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from write_silo_results import KINDS, one_shot_table

from wfcli.core.generator_files import load_generator, save_generator
from wfcli.core.zoo import Zoo, read_zoo

TARGET = Path(__file__).parent.parent / "pretrained" / "universal"
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
85-99 and CIFAR-10. K teachers, fine-tunes of one base, each on its own Dirichlet-0.3 share. Mean over five subsets of
the teachers of each task and {seeds} of the generator (with probes: one), ± half the 95 % interval of the mean over
(task, subset).

{table}
Shipped is {name}, the best of {seeds} on the held-out zoos (gain over the soup there: {gain:.1f} points).

## Trained on

{count} zoos, each of fine-tunes of one base (CIFAR-100, classes 0-49) on ten of the classes 50-84: {labels}.
Every sixth served validation alone.

| zoo | teachers | shares | classes |
|---|---|---|---|
{zoos}

Subsets of 2 to 6 teachers, half of the time on some of the classes alone; BatchNorm half of the time with the
statistics of the batch, half with the running statistics that a data-free student has.

## Limits

Fine-tunes of one base only. Nets of other kinds than these, and images far from photographs, are hardly tested (on the
digits of `make demo` it gives no more than the soup): `fuse` looks at the student and writes the soup where it finds
that broken; a few hundred images without labels (`--unlabelled`) help more there. Images of 32 x 32 pixels and small
nets in training. On CIFAR-10 it stays below the ensemble; it is above on the tasks of CIFAR-100, from whose other
classes it has learned. Where all teachers saw the same data the soup is near the ensemble already, and there is little
to gain.

Made by `examples/silo_teachers.sh` and `examples/ship_universal.py`.
"""


def main() -> None:
    """Copy the best generator and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of silo_teachers.sh")
    runs: Path = parser.parse_args().runs
    folders = sorted(runs.glob("generators/all-[0-9]"))
    if not folders:
        raise SystemExit(f"{runs}: no generators/all-* there, expected those of examples/silo_teachers.sh")
    gains = {folder: max(row["gain"] for row in read_log(folder)) for folder in folders}
    best = max(folders, key=lambda folder: gains[folder])
    generator, _ = load_generator(best, best.name)
    zoos = [read_zoo(folder) for kind in KINDS for folder in sorted(runs.glob(f"{kind}/task-*"))]
    results = {kind: json.loads((runs / f"{kind}.json").read_text()) for kind in KINDS}
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    card = write_card(sum(p.numel() for p in generator.parameters()), zoos, results, gains[best], best.name, seeds)
    digest = save_generator(TARGET, generator, card)
    print(f"{best.name} -> {TARGET.name}, sha256 {digest}")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the validation lines of a training."""
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [row for row in rows if "gain" in row]


def write_card(
    parameters: int, zoos: Sequence[Zoo], results: Mapping[str, Any], gain: float, name: str, seeds: str
) -> str:
    """Return the card."""
    trained = [
        f"| {zoo.folder.parent.name}/{zoo.folder.name} | {len(zoo.teachers)} | {zoo.shares['kind']}"
        + (f" {zoo.shares['concentration']}" if zoo.shares["kind"] == "dirichlet" else "")
        + f" | {zoo.data.classes} |"
        for zoo in zoos
    ]
    return CARD.format(
        parameters=parameters,
        table=one_shot_table(results, SHOWN, (3, 6)),
        name=name,
        seeds=seeds,
        gain=100 * gain,
        count=len(zoos),
        labels=", ".join(sorted({zoo.architecture.label for zoo in zoos})),
        zoos="\n".join(trained),
    )


if __name__ == "__main__":
    main()
