"""Put the best specialised generator of one net of seen_dataset.sh into pretrained/, with base, card and entry.

The best is the one with the highest gain on the held-out teachers of its training log; test images play no part in it.
The base goes along, for a specialised generator is of use for fine-tunes of it alone. Base and prior are in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ship_universal import read_log, results_of
from write_seen_results import COUNTS, PLACES, ROWS, table

from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.generator_files import load_generator, save_generator
from wfcli.core.pretrained import BASE, Pretrained, Result, describe_generator, write_entry
from wfcli.core.zoo import Zoo, read_zoo

TARGET = Path(__file__).parent.parent / "pretrained"
NAMES = {"vgg-cifar10": "vgg11_bn-cifar10", "vit-cifar10": "vit_tiny-cifar10"}
DATASET = "uoft-cs/cifar10"  # of all of them
CARD = """---
library_name: wfcli
license: apache-2.0
datasets:
- uoft-cs/cifar10
- uoft-cs/cifar100
tags:
- model-merging
- weightformer
---
# WeightFormer `specialised`: {net}, CIFAR-10

For fine-tunes of `base.safetensors` (beside this card, bfloat16; trained on CIFAR-100) on the ten classes of CIFAR-10,
and for nothing else: `wfcli fuse` refuses another base, architecture or set of classes. {parameters:,} parameters: a
mixing of the teachers by scale-free statistics of their weights, and a prior, one number for each weight of the net.
After Meta-Ensemble Parameter Learning (arXiv 2210.01973).

```
wfcli train-teachers {options} --data path/to/cifar10 \\
  --init pretrained:{name}/base --count 3 --epochs 6 --lr {lr} -o teachers
wfcli fuse 'teachers/*.safetensors' {options} \\
  --generator pretrained:{name} -o student.safetensors
```

## Results

Top-1 in %, 5,000 test images of CIFAR-10; K fine-tunes that no generator has seen, all on the same {images} images,
recipes varied. Mean over five sets of teachers and {seeds} of the generator (its controls and distillation: one),
± half the 95 % interval of the mean over the sets.

{table}
Shipped is {chosen}{why} (gain over the soup on held-out teachers: {gain:.1f} points), its prior rounded to bfloat16;
the figures are those before.

## Limits

The prior is most of it: what all teachers of this base and dataset have in common, learned from 10,000 images with
labels that no teacher has seen; the controls in the table say what the teachers' own weights add.

Made by `examples/seen_dataset.sh` and `examples/ship_specialised.py`.
"""


def main() -> None:
    """Copy the best generator and its base, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of seen_dataset.sh")
    parser.add_argument("place", choices=list(NAMES))
    options = parser.parse_args()
    place, target = options.runs / options.place, TARGET / NAMES[options.place]
    folders = sorted(file.parent for file in place.glob("generators/specialised-[0-9]/model.safetensors"))
    figures = options.runs / f"{options.place}.json"
    if not folders or not figures.exists():
        raise SystemExit(f"{place}: no generators/specialised-*, or no {figures}: run examples/seen_dataset.sh first")
    gains = {folder: max(row["gain"] for row in read_log(folder)) for folder in folders}
    best = max(folders, key=lambda folder: gains[folder])
    generator, measured = load_generator(best, best.name)
    found = results(options.place, measured)
    zoo = read_zoo(place / "teachers")
    tables = {options.place: json.loads(figures.read_text())}
    parameters = sum(p.numel() for p in generator.parameters())
    card = write_card(parameters, zoo, tables, gains[best], best.name, len(folders))
    for parameter in generator.prior.parameters():
        parameter.data = parameter.data.bfloat16()
    frame = generator.config.frame
    assert frame is not None
    named = replace(frame, base=f"pretrained:{NAMES[options.place]}/base")  # as its users find it
    generator.config = replace(generator.config, frame=named)
    digest = save_generator(target, generator, card)
    base = open_checkpoint(place / "base" / "teacher-00.safetensors")
    state = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in base.items()}
    save_state(target / BASE, state, base.provenance or {})
    write_entry(describe_generator(target, DATASET, found), TARGET)
    print(f"{best.name} -> {target.name}, sha256 {digest}, {sum(f.stat().st_size for f in target.iterdir()):,} bytes")


def entry(place: str) -> Pretrained:
    """Describe what lies in pretrained/, for the index."""
    return describe_generator(TARGET / NAMES[place], DATASET, results(place))


def results(place: str, digest: str | None = None) -> list[Result]:
    """Take the figures of the index from examples/results/; `digest` is of the weights before the prior was rounded."""
    return results_of(f"seen_dataset_{place}.json", "seen", COUNTS, "specialised", digest)


def write_card(parameters: int, zoo: Zoo, results: Mapping[str, Any], gain: float, chosen: str, seeds: int) -> str:
    """Return the card."""
    place = next(iter(results))
    arguments = [f"--arch-arg {name}={value}" for name, value in zoo.architecture.args]
    return CARD.format(
        net=PLACES[place].partition(",")[0],
        parameters=parameters,
        options=" ".join([f"--arch {zoo.architecture.name}", *arguments]),
        name=NAMES[place],
        lr="0.03" if place.startswith("vgg") else "0.0006",
        images=f"{sum(zoo.teachers[0].class_counts):,}",
        seeds=f"{seeds} seeds" if seeds > 1 else "one seed",
        why=", the best of them there" if seeds > 1 else "",
        table=table(results, ROWS),
        chosen=chosen,
        gain=100 * gain,
    )


if __name__ == "__main__":
    main()
