"""The card of a generator: the README.md beside its weights, with the metadata the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wfcli.core.generator import WeightFormer
from wfcli.core.zoo import Zoo

if TYPE_CHECKING:
    from wfcli.engine.train_generator import TrainGeneratorConfig

HEAD = """---
library_name: wfcli
license: apache-2.0
tags:
- model-merging
- weightformer
---
"""


def generator_card(
    generator: WeightFormer, zoos: Sequence[Zoo], best: Mapping[str, float], config: TrainGeneratorConfig
) -> str:
    """Write a generator's card: what it is, what it was trained on, what it reached on held-out teachers, how to make it again."""
    settings = generator.config
    parameters = sum(p.numel() for p in generator.parameters())
    shown = {"calibrated": "BatchNorm from images of the task", "data_free": "without any data"}
    rows = [
        f"| {text} | {100 * best['soup_' + key]:.1f} | {100 * best[key]:.1f} |"
        for key, text in shown.items()
        if key in best
    ]
    trained = [
        f"- {zoo.folder.name}: {len(zoo.teachers)} x {zoo.architecture.label}, {len(zoo.class_names)} classes, "
        f"{'same data' if zoo.shares['kind'] == 'same' else 'split data, ' + str(zoo.shares['kind'])}"
        for zoo in zoos
    ]
    belongs = []
    if settings.frame:
        belongs = [
            f"It belongs to one base ({settings.frame.base or 'unnamed'}), architecture ({settings.frame.architecture}) and set of "
            f"classes ({len(settings.frame.class_names)}); `wfcli fuse` refuses it for others.",
            "",
        ]
    lines = [
        f"# WeightFormer, preset `{settings.preset}`",
        "",
        "A generator for `wfcli fuse`: it reads the weights of several checkpoints and gives those of one student.",
        "After Meta-Ensemble Parameter Learning (arXiv 2210.01973).",
        "",
        *belongs,
        f"{parameters:,} parameters. {config.steps} steps of {config.batch_size} images, rate {config.lr}, seed {config.seed}, "
        f"2 to {config.max_teachers} teachers a step; the best by validation is step {int(best['step'])}.",
        "",
        "## Validation on held-out teachers (top-1, %)",
        "",
        "| BatchNorm statistics | soup | generator |",
        "|---|---|---|",
        *rows,
        "",
        "## Trained on",
        "",
        *trained,
        "",
        "## Use",
        "",
        "```",
        "wfcli fuse 'teachers/*.safetensors' --arch ARCH --generator THIS_FOLDER -o student.safetensors",
        "```",
        "",
    ]
    return HEAD + "\n".join(lines)
