"""How often the guard of `wfcli fuse` fires, and how often it is right: on the silo teachers of cifar_fine_tunes.sh.

Students come from the trained universal generators and from damaged copies (noise on the last layers, of several
sizes); a student counts as broken when it is more than a point below the soup on validation images. The guard sees
made-up images, or real ones without their labels. Prints a table; --output writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wfcli.core.architectures import build_model, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec, load_images
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.methods import soup
from wfcli.core.plan import plan_layers
from wfcli.core.probes import probe_images
from wfcli.core.zoo import read_zoo
from wfcli.engine.hooks import Silent
from wfcli.engine.lineup import Bench
from wfcli.engine.polish import Nets, first_pixels, guard, guard_probes, look
from wfcli.engine.provenance import made_by

NOISE = (0.02, 0.1, 0.3, 1.0)
COUNTS = (2, 3, 6, 9)
BROKEN = -0.01  # of accuracy, against the soup


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the work folder of cifar_fine_tunes.sh")
    parser.add_argument("--data", type=Path, required=True, help="the CIFAR-10 folder")
    parser.add_argument("--subsets", type=int, default=3, help="of teachers, for each K")
    parser.add_argument("--images", type=int, default=1500, help="of the validation split")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    zoo = read_zoo(options.runs / "cifar10-split")
    settings = input_config(zoo.architecture)
    model = build_model(zoo.architecture, len(zoo.class_names))
    head = head_keys(zoo.architecture)[0].removesuffix(".weight")
    plan = plan_layers(model, head)
    bench = Bench(settings, torch.device("cpu"), 500, Silent())
    data = DataSpec(str(options.data))
    checking = load_images(data, "validation", settings.size, limit=options.images)
    number = guard_probes(settings.size)
    seen = {
        "made-up images": probe_images(number, settings.size),
        "real images": first_pixels(load_images(data, "generator", settings.size, limit=number), number),
    }
    states = [dict(open_checkpoint(path)) for path in zoo.paths]
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        draw = random.Random(count)
        for _ in range(options.subsets):
            index = sorted(draw.sample(range(len(states)), count))
            nets = Nets(bench, model, head, [states[i] for i in index])
            average = soup(list(nets.teachers))
            floor = top1(nets, average, checking.pixels, checking.labels)
            for name, generator in generators(options.runs):
                with torch.no_grad():
                    student = dict(generator.generate(plan, nets.teachers))
                gain = top1(nets, student, checking.pixels, checking.labels) - floor
                fires = {what: guard(nets, student, average, pixels).broken for what, pixels in seen.items()}
                rows.append({"teachers": index, "generator": name, "gain": gain, "fires": fires})
    print("\n".join(table(rows, list(seen))))
    if options.output is not None:
        options.output.write_text(
            json.dumps({**made_by("guard_table", zoo.architecture, 0), "rows": rows}, indent=1) + "\n"
        )


def generators(runs: Path) -> Iterator[tuple[str, WeightFormer]]:
    """Yield the trained generators by name, and damaged copies of the first."""
    trained = [load_generator(folder, folder.name)[0] for folder in sorted(runs.glob("universal-*"))]
    for number, generator in enumerate(trained):
        yield f"trained {number}", generator
    for size in NOISE:
        for part in ("scales", "all"):
            damaged = copy.deepcopy(trained[0])
            layers: Sequence[nn.Linear] = (
                (damaged.scales,) if part == "scales" else (damaged.logits, damaged.scales, damaged.centres)
            )
            draw = torch.Generator().manual_seed(round(100 * size))
            with torch.no_grad():
                for parameter in (p for layer in layers for p in layer.parameters()):
                    parameter.add_(size * torch.randn(parameter.shape, generator=draw))
            yield f"noise {size} on {part}", damaged


def top1(nets: Nets, state: dict[str, torch.Tensor], pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the accuracy, 0..1."""
    return float((look(nets, state, pixels)[1].argmax(1) == labels).float().mean())


def table(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """Count how often the guard fires on broken students, on sound ones, and on those of trained generators."""
    groups = {
        "broken": [row for row in rows if row["gain"] < BROKEN],
        "sound": [row for row in rows if row["gain"] >= BROKEN],
        "of trained generators": [row for row in rows if row["generator"].startswith("trained")],
    }
    lines = [
        "| students | n | " + " | ".join(f"fires on {kind}" for kind in kinds) + " |",
        "|---|---:|" + "---:|" * len(kinds),
    ]
    for name, group in groups.items():
        fired = [sum(row["fires"][kind] for row in group) for kind in kinds]
        lines.append(f"| {name} | {len(group)} | " + " | ".join(map(str, fired)) + " |")
    return lines


if __name__ == "__main__":
    main()
