"""How often the guard of `wfcli fuse` fires, and how often it is right: on the silo teachers of silo_teachers.sh.

Students come from the trained generators, those that never saw the kind of net among them, and from damaged copies
(noise on the last layers, of several sizes); a student counts as broken when it is more than a point below the soup on
validation images. The guard sees made-up images, or real ones without their labels. Prints a table; --output writes all
figures as JSON.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import wfcli
from wfcli.core.architectures import build_model, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import load_images
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.methods import soup
from wfcli.core.outputs import write_json
from wfcli.core.probes import probe_images
from wfcli.core.zoo import read_zoo
from wfcli.engine.hooks import Silent
from wfcli.engine.lineup import Bench
from wfcli.engine.plans import plan_of
from wfcli.engine.polish import Nets, guard, guard_probes, look, some_pixels

KINDS = ("vgg", "resnet", "vit")
ZOOS = ("test-00", "cifar10")
COUNTS = (2, 3, 6, 9)
NOISE = (0.02, 0.1, 0.3, 1.0)
SEEN = ("made-up images", "real images")
BROKEN = -0.01  # of accuracy, against the soup


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the work folder of silo_teachers.sh")
    parser.add_argument("--images", type=int, default=1000, help="of the validation split")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        makers = list(generators(options.runs / "generators", kind))
        for name in ZOOS:
            rows += [{"kind": kind, **row} for row in students(options.runs / kind / name, makers, options.images)]
            print(f"{kind}/{name}: done", flush=True)
    print("\n".join(table(rows)))
    if options.output is not None:
        versions = {"wfcli": wfcli.__version__, "torch": str(torch.__version__), "timm": version("timm")}
        write_json(options.output, {**versions, "rows": rows})


def students(folder: Path, makers: Sequence[tuple[str, WeightFormer]], images: int) -> Iterator[dict[str, Any]]:
    """Fuse subsets of a zoo's teachers with every generator; yield what each student gains and what the guard says."""
    zoo = read_zoo(folder)
    settings = input_config(zoo.architecture)
    model = build_model(zoo.architecture, len(zoo.class_names))
    head = head_keys(zoo.architecture)[0].removesuffix(".weight")
    plan = plan_of(zoo.architecture, len(zoo.class_names))
    bench = Bench(settings, torch.device("cpu"), 500, Silent())
    checking = load_images(zoo.data, "validation", settings.size, limit=images)
    number = guard_probes(settings.size)
    real = some_pixels(load_images(zoo.data, "generator", settings.size), number)
    seen = dict(zip(SEEN, (probe_images(number, settings.size), real), strict=True))
    states = [dict(open_checkpoint(path)) for path in zoo.paths]
    for count in COUNTS:
        index = sorted(random.Random(count).sample(range(len(states)), count))
        nets = Nets(bench, model, head, [states[i] for i in index])
        average = soup(list(nets.teachers))
        floor = top1(nets, average, checking.pixels, checking.labels)
        for name, generator in makers:
            with torch.no_grad():
                student = dict(generator.generate(plan, nets.teachers))
            gain = top1(nets, student, checking.pixels, checking.labels) - floor
            fires = {what: guard(nets, student, average, pixels).broken for what, pixels in seen.items()}
            yield {"zoo": folder.name, "teachers": index, "generator": name, "gain": gain, "fires": fires}


def generators(folder: Path, kind: str) -> Iterator[tuple[str, WeightFormer]]:
    """Yield the trained generators that concern a kind of net, and damaged copies of the first of its own."""
    for name in (f"{kind}-*", "all-*", f"no-{kind}-*"):
        for found in sorted(folder.glob(name)):
            if found.name.rpartition("-")[0] in (kind, "all", f"no-{kind}"):  # not vgg-full-0
                yield found.name, load_generator(found, found.name)[0]
    whole = load_generator(folder / f"{kind}-0", f"{kind}-0")[0]
    for size in NOISE:
        for part in ("scales", "all"):
            damaged = copy.deepcopy(whole)
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


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Count how often the guard fires, by what is known of the generator, on broken and on sound students."""
    lines = [
        "| generator: student | n | " + " | ".join(f"fires on {kind}" for kind in SEEN) + " |",
        "|---|---:|" + "---:|" * len(SEEN),
    ]
    for maker in ("trained on this kind of net", "trained on other kinds alone", "damaged"):
        for state in ("broken", "sound"):
            group = [
                r for r in rows if known_of(r["generator"]) == maker and (r["gain"] < BROKEN) == (state == "broken")
            ]
            fired = [sum(row["fires"][kind] for row in group) for kind in SEEN]
            lines.append(f"| {maker}: {state} | {len(group)} | " + " | ".join(map(str, fired)) + " |")
    return lines


def known_of(generator: str) -> str:
    """Say what its name tells of a generator."""
    first = generator.partition("-")[0].partition(" ")[0]
    return {"noise": "damaged", "no": "trained on other kinds alone"}.get(first, "trained on this kind of net")


if __name__ == "__main__":
    main()
