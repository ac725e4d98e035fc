"""The card of a generator: the README.md beside its weights, with the metadata the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.zoo import Zoo

if TYPE_CHECKING:
    from wfcli.engine.fitting import Loaded
    from wfcli.engine.grounds import OpenZoo
    from wfcli.engine.train_generator import TrainGeneratorConfig

HEAD = """---
library_name: wfcli
tags:
- model-merging
- weightformer
---
"""
SETTINGS = (("calibrated", "BatchNorm from images of the task"), ("data_free", "without any data"))


def generator_card(
    generator: WeightFormer,
    zoos: Sequence[OpenZoo],
    best: Mapping[str, float],
    config: TrainGeneratorConfig,
    pairs: int,
    shift_weight: float,
    first: Loaded | None = None,
) -> str:
    """Write a generator's card: what it is, what it was trained on, what it reached, how to make it again.

    `best` is the validation (accuracies 0..1) of the step that was kept; `pairs` and `shift_weight` are what the run
    took where `config` leaves it to the preset and the number of processes; `first` is the generator it started from.
    """
    frame = generator.config.frame
    parameters = sum(p.numel() for p in generator.parameters())
    lines = [
        f"# WeightFormer, preset `{generator.config.preset}`",
        "",
        "A generator for `wfcli fuse`: it reads the weights of several checkpoints and gives those of one student.",
        "After Meta-Ensemble Parameter Learning (arXiv 2210.01973).",
        "",
    ]
    if frame is not None:
        lines += [
            f"It belongs to one base ({frame.base or 'unnamed'}), one architecture ({frame.architecture})",
            f"and one set of {len(frame.class_names)} classes; `wfcli fuse` refuses it for others.",
            "",
        ]
    lines += [
        f"{parameters:,} parameters. {config.steps} steps of {config.batch_size} images, rate {config.lr},",
        f"seed {config.seed}, 2 to {config.max_teachers} teachers at a time (of each zoo: {config.teachers or 'all'}),",
        f"pairs of teachers and images in a step: {pairs}, weight of shift consistency {shift_weight};",
        f"the best by validation is step {int(best['step'])}.",
        f"augmented copies of an image: {config.views}.{_make(generator.config)}",
        *([f"It went on from the generator {first.name} (sha256 {first.digest})."] if first else []),
        *([f"Trained was the {config.train} alone."] if config.train != "all" else []),
        "",
        "## Validation on held-out teachers (top-1, %)",
        "",
        "| BatchNorm statistics | soup | generator |",
        "|---|---|---|",
        *(f"| {text} | {100 * best['soup_' + key]:.1f} | {100 * best[key]:.1f} |" for key, text in SETTINGS),
        "",
        "## Trained on",
        "",
        *(_zoo_line(entry.zoo) for entry in zoos),
        "",
        "## Use",
        "",
        "```",
        "wfcli fuse 'teachers/*.safetensors' --arch ARCH --generator THIS_FOLDER -o student.safetensors",
        "```",
        "",
    ]
    return HEAD + "\n".join(lines)


def _make(config: WeightFormerConfig) -> str:
    """Say what differs from the usual make of a generator."""
    usual = WeightFormerConfig()
    names = [n for n in ("width", "blocks", "attention", "mask", "flow") if getattr(config, n) != getattr(usual, n)]
    return "".join(f" {name.capitalize()}: {getattr(config, name)}." for name in names)


def _zoo_line(zoo: Zoo) -> str:
    kind = zoo.shares["kind"]
    return (
        f"- {zoo.folder.resolve().name}: {len(zoo.teachers)} x {zoo.architecture.label}, "
        f"{len(zoo.class_names)} classes, {'same data' if kind == 'same' else f'split data, {kind}'}"
    )
