"""Put the best universal generator of cifar_fine_tunes.sh into pretrained/universal, with a card of its results.

The best is the one with the highest gain on the held-out zoos of its training log; test images play no part in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from write_results import figure

from wfcli.core.generator_files import load_generator, save_generator
from wfcli.core.zoo import Zoo, read_zoo

TARGET = Path(__file__).parent.parent / "pretrained" / "universal"
SHOWN = (
    "best single (by validation)",
    "soup, calibrated",
    "soup, data-free",
    "generator, calibrated",
    "generator, data-free",
    "control: generator, destroyed teachers",
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

CIFAR-10, 10,000 test images, top-1 in %: a dataset, images and teachers that no generator was trained on. The teachers
are fine-tunes of one base, each on its own Dirichlet-0.3 share. Mean ± standard deviation over 5 subsets of 10 teachers
(rows of the generator: times 3 seeds).

| | {titles} |
|---|{rule}
{rows}

Shipped is {name}, the best of three seeds on the held-out zoos (gain over the soup there: {gain:.1f} points).

## Trained on

{count} zoos of {label}, fine-tunes of one base (CIFAR-100, classes 0-49), each on ten of the classes 50-84:

| zoo | teachers | shares | classes |
|---|---|---|---|
{zoos}

Subsets of 2 to 6 teachers; BatchNorm half of the time with the statistics of the batch, half with the running
statistics that a data-free student has. Three of the zoos served validation alone.

## Limits

Fine-tunes of one base only. Convolutional nets with BatchNorm only: `fuse` gives the soup for others and says so. One
architecture, width and image size in training: others are hardly tested. Where all teachers saw the same data the soup
is near the ensemble already, and there is little to gain.

Made by `examples/cifar_fine_tunes.sh` and `examples/ship_universal.py`.
"""


def main() -> None:
    """Copy the best generator and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of cifar_fine_tunes.sh")
    runs = parser.parse_args().runs
    folders = sorted(runs.glob("universal-*"))
    gains = {folder: max(row["gain"] for row in read_log(folder)) for folder in folders}
    best = max(folders, key=lambda folder: gains[folder])
    generator, _ = load_generator(best, best.name)
    zoos = [read_zoo(folder) for folder in sorted(runs.glob("task-*"))]
    tables = json.loads((runs / "split.json").read_text())["tables"]
    card = write_card(sum(p.numel() for p in generator.parameters()), zoos, tables, gains[best], best.name)
    digest = save_generator(TARGET, generator, card)
    print(f"{best.name} -> {TARGET.name}, sha256 {digest}")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the validation lines of a training."""
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [row for row in rows if "gain" in row]


def write_card(
    parameters: int, zoos: Sequence[Zoo], tables: Mapping[str, Mapping[str, list[float]]], gain: float, name: str
) -> str:
    """Return the card."""
    titles = list(tables)
    rows = [
        f"| {row} | " + " | ".join(figure(tables[title][row]) for title in titles) + " |"
        for row in SHOWN
        if all(row in tables[title] for title in titles)
    ]
    trained = [
        f"| {zoo.folder.name} | {len(zoo.teachers)} | {zoo.shares['kind']}"
        + (f" {zoo.shares['concentration']}" if zoo.shares["kind"] == "dirichlet" else "")
        + f" | {zoo.data.classes} |"
        for zoo in zoos
    ]
    return CARD.format(
        parameters=parameters,
        titles=" | ".join(titles),
        rule="---:|" * len(titles),
        rows="\n".join(rows),
        name=name,
        gain=100 * gain,
        count=len(zoos),
        label=zoos[0].architecture.label,
        zoos="\n".join(trained),
    )


if __name__ == "__main__":
    main()
