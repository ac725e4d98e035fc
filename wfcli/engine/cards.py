"""The card of a generator: the README.md beside its weights, with the metadata the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.hub_cards import Measured, write_card
from wfcli.core.zoo import FILE
from wfcli.engine.again import train_generator_command
from wfcli.engine.hub_texts import AGAIN, GENERATOR, dataset_name, hub_datasets
from wfcli.engine.recipe import pinned

if TYPE_CHECKING:
    from wfcli.engine.fitting import Loaded
    from wfcli.engine.grounds import OpenZoo
    from wfcli.engine.train_generator import TrainGeneratorConfig

SETTINGS = (("calibrated", "BatchNorm from images of the task"), ("data_free", "without any data"))


def generator_card(
    generator: WeightFormer,
    zoos: Sequence[OpenZoo],
    best: Mapping[str, float],
    config: TrainGeneratorConfig,
    settings: Mapping[str, Any],
    first: Loaded | None = None,
) -> str:
    """Write a generator's card: what it is, what it was trained on, what it reached, how to make it again.

    `best` is the validation (accuracies 0..1) of the step that was kept; `settings` are all options by their flags, as
    the run took them; `first` is the generator it started from.
    """
    frame = generator.config.frame
    pairs, shift_weight = settings["accumulate"], settings["shift-weight"]
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
        *(_zoo_line(entry) for entry in zoos),
        "",
        *AGAIN,
        "In the folder of the zoos, whose data lies where their `zoo.json` says:",
        "",
        "```",
        train_generator_command(
            [entry.zoo.folder for entry in zoos],
            {**settings, "init": None if first is None else _start(config.init or "", first)},
        ),
        "```",
        "",
        "## Use",
        "",
        "```",
        "wfcli fuse 'teachers/*.safetensors' --arch ARCH --generator THIS_FOLDER -o student.safetensors",
        "```",
        "",
    ]
    name = f"WeightFormer {generator.config.preset}"
    metadata = {**GENERATOR, "datasets": hub_datasets(entry.zoo.data.source for entry in zoos)}
    return write_card(metadata, "\n".join(lines), name, _measured(zoos, best))


def _measured(zoos: Sequence[OpenZoo], best: Mapping[str, float]) -> Measured:
    """Return what it reached, on the datasets of the zoos with teachers that were held out."""
    checked = dict.fromkeys(dataset_name(entry.zoo.data.source) for entry in zoos if entry.held_out)
    figures = tuple(("accuracy", f"top-1, {text}", best[key]) for key, text in SETTINGS)
    return Measured(", ".join(checked), "validation", figures)


def _start(typed: str, first: Loaded) -> str:
    """Spell the generator it went on from: one of the Hub at its commit, a folder by its base name."""
    if typed.startswith("pretrained:"):
        return typed
    return pinned(first.record())


def _make(config: WeightFormerConfig) -> str:
    """Say what differs from the usual make of a generator."""
    usual = WeightFormerConfig()
    names = [n for n in ("width", "blocks", "attention", "mask", "flow") if getattr(config, n) != getattr(usual, n)]
    return "".join(f" {name.capitalize()}: {getattr(config, name)}." for name in names)


def _zoo_line(entry: OpenZoo) -> str:
    zoo = entry.zoo
    kind = zoo.shares["kind"]
    return (
        f"- {zoo.folder.resolve().name}: {len(zoo.teachers)} x {zoo.architecture.label}, "
        f"{len(zoo.class_names)} classes, {'same data' if kind == 'same' else f'split data, {kind}'}; "
        f"sha256 of its {FILE} {entry.digest}"
    )
