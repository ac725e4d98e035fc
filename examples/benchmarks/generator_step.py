"""What a step of training a generator costs beyond the student's own forward and backward pass.

vgg11_bn_cifar at full width (9.2 M parameters), 4 teachers, 256 images: random weights and images, as only the time
counts. The goal: at most 50 % more for `universal`, 150 % for `weightformer`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch

from wfcli.core.architectures import build_model, find_architecture, input_config
from wfcli.core.curriculum import Ground, Pool, distillation_loss, generate_subset, read_layers, student_logits
from wfcli.core.devices import pick_device
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import PRESETS, WeightFormerConfig
from wfcli.core.votes import presence
from wfcli.engine.building import RAW_LIMIT
from wfcli.engine.generator_run import CE_WEIGHT
from wfcli.engine.plans import plan_of
from wfcli.engine.provenance import made_by

TEACHERS, IMAGES, CLASSES = 4, 256, 10
GOALS = {"universal": 0.5, "weightformer": 1.5}


def main() -> None:
    """Measure and print; with --out also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vgg11_bn_cifar")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    device = pick_device(options.device)
    ground = make_ground(options.arch, device)
    steps: dict[str, Callable[[], None]] = {"student": lambda: student_alone(ground)}
    steps |= {name: whole_step(ground, name, device) for name in GOALS}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.runs + 1):  # interleaved; the first warms up
        for name, step in steps.items():
            began = now(device)
            step()
            if number:
                seconds[name].append(now(device) - began)
    alone = median(seconds["student"])
    lines = [f"student alone: {alone:.2f} s ({min(seconds['student']):.2f} to {max(seconds['student']):.2f})"]
    for name, goal in GOALS.items():
        more = median(seconds[name]) / alone - 1
        kept = "kept" if more <= goal else "missed"
        lines.append(f"{name}: {median(seconds[name]):.2f} s, {more:+.0%} (at most +{goal:.0%}: {kept})")
    print("\n".join(lines))
    if options.out is not None:
        arch = find_architecture(options.arch)
        where = (
            torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
        )
        record = {**made_by("generator_step", arch, 0), "date": date.today().isoformat(), "device": where}
        options.out.write_text(json.dumps({**record, "seconds": seconds, "summary": lines}, indent=1) + "\n")


def make_ground(arch: str, device: torch.device) -> Ground:
    """Return teachers round one random base, with random images and answers."""
    architecture = find_architecture(arch)
    torch.manual_seed(0)
    model = build_model(architecture, CLASSES).to(device)
    base = model.state_dict()
    states = [
        {
            n: t + 0.1 * t.std(correction=0) * torch.randn_like(t) if t.is_floating_point() else t
            for n, t in base.items()
        }
        for _ in range(TEACHERS)
    ]
    plan = plan_of(architecture, CLASSES)
    layers, constants = read_layers(plan, states, device)
    settings = input_config(architecture)
    pixels = torch.randint(0, 256, (IMAGES, 3, settings.size, settings.size), dtype=torch.uint8, device=device)
    answers = torch.randn(TEACHERS, IMAGES, CLASSES, device=device).log_softmax(2)
    pool = Pool(pixels, torch.randint(0, CLASSES, (IMAGES,), device=device), answers, presence(answers))
    everyone = tuple(range(TEACHERS))
    return Ground(model, plan, layers, constants, settings, pool, pool, everyone, (), tuple(map(str, everyone)))


def student_alone(ground: Ground) -> None:
    """Run a student forward and backward, as a fine-tuning would: its weights are leaves."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in ground.model.named_parameters()}
    logits = student_logits(ground, {**ground.model.state_dict(), **leaves}, ground.train.pixels, True)
    distillation_loss(logits, wanted(ground), ground.train.labels, CE_WEIGHT).backward()


def whole_step(ground: Ground, preset: str, device: torch.device) -> Callable[[], None]:
    """Return a step of training a generator of that preset, without the optimiser."""
    kind = PRESETS[preset]
    stacks = [tokens.weight for _, tokens, _ in ground.layers if tokens.weight is not None]
    widths = tuple(sorted({stack.flatten(2).shape[2] for stack in stacks})) if kind.raw_rows else ()
    config = WeightFormerConfig(
        preset=preset,
        attention=kind.attention,
        mask=kind.mask,
        raw_widths=tuple(width for width in widths if width <= RAW_LIMIT),
    )
    generator = WeightFormer(config).to(device)
    index = torch.arange(TEACHERS, device=device)

    def step() -> None:
        generator.zero_grad(set_to_none=True)
        logits = student_logits(ground, generate_subset(generator, ground, index), ground.train.pixels, True)
        distillation_loss(logits, wanted(ground), ground.train.labels, CE_WEIGHT).backward()

    return step


def wanted(ground: Ground) -> torch.Tensor:
    """Return the log of the teachers' votes, as the training has it."""
    device = ground.train.labels.device
    return ground.train.wanted(torch.arange(TEACHERS, device=device), torch.arange(IMAGES, device=device))


def now(device: torch.device) -> float:
    """Return the time when all is done so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
