"""`wfcli train-generator`: learn on zoos of teachers to write students."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from wfcli.core.blocks import ATTENTIONS
from wfcli.core.devices import pick_device
from wfcli.core.generator_config import PRESETS, Preset, WeightFormerConfig
from wfcli.core.generator_files import CARD, CONFIG, RESUME, WEIGHTS, save_generator
from wfcli.core.outputs import check_folder, make_folder
from wfcli.core.runs import is_log, is_run
from wfcli.core.training import repeatable, seed_for
from wfcli.core.zoo import FILE, Zoo
from wfcli.engine.building import build_generator, check_frame, check_start
from wfcli.engine.cards import generator_card
from wfcli.engine.fitting import Loaded, load_named
from wfcli.engine.generator_run import LOG, GeneratorRun
from wfcli.engine.grounds import OpenZoo, open_zoos, read_ground
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.provenance import described, source_name
from wfcli.engine.team import Team
from wfcli.errors import GeneratorError, OutputError, Problems, WfError

TRAINED = ("all", "mixing", "prior")
HEADS = WeightFormerConfig.heads


@dataclass(frozen=True)
class TrainGeneratorConfig:
    """Options of `wfcli train-generator`."""

    zoos: tuple[Path, ...]
    output: Path
    preset: str | None = None  # None: of the generator it starts from, or else universal
    steps: int = 1000
    batch_size: int = 256
    lr: float = 2e-3
    max_teachers: int = 8
    views: int = 2  # augmented copies of the images; teachers answer them once, before the first step
    init: str | None = None  # the generator it starts from; None: an untrained one, which gives the soup
    train: str = "all"  # or "mixing" or "prior": the rest stays as it was
    width: int | None = None  # None: as of the generator it starts from, or else as the preset says; the next three too
    blocks: int | None = None
    attention: str | None = None  # "cross" or "full"
    mask: bool | None = None
    flow: bool = True
    shift_weight: float | None = None  # None: as the preset says
    accumulate: int | None = None  # pairs of teachers and images in a step; None: one for each process
    teachers: str | None = None  # "0-9": which teachers of each zoo, by number; None for all
    seed: int = 0
    device: str = "auto"
    resume: bool = False

    @property
    def kind(self) -> Preset:
        """What the preset stands for; an unknown one is refused elsewhere."""
        return PRESETS.get(self.preset or "universal", PRESETS["universal"])


@dataclass(frozen=True)
class Learned:
    """A zoo that a generator learned from, or was validated on: how many of its teachers for which."""

    name: str
    architecture: str
    data: str
    classes: int
    trained_on: int
    held_out: int


@dataclass(frozen=True)
class TrainGeneratorResult:
    """What a training gave; accuracies and gains 0..1 on held-out teachers and validation images."""

    folder: Path
    digest: str
    parameters: int
    steps: int
    best_step: int
    gain: float  # over the soup, mean of calibrated and data-free
    history: tuple[dict[str, float], ...]
    seconds: float
    zoos: tuple[Learned, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # as they were in the end, defaults of presets included


def train_generator(config: TrainGeneratorConfig, hooks: Hooks | None = None) -> TrainGeneratorResult:
    """Train a generator and write it to `config.output`: config.json, model.safetensors, README.md, training.jsonl.

    The best generator on held-out teachers is kept: whole zoos are held out where there are four or more, else three
    tenths of each zoo's teachers. A resumed run ends as if it had not been interrupted.

    Raises:
        WfError: options out of range; a loss that is no longer finite; a run to resume that had other options.
        GeneratorError: an unknown preset, too few teachers, or zoos that do not fit the preset; a generator to start
            from that is of another make, or belongs to other zoos.
        SourceError, CheckpointError, ArchitectureError, DataError: a zoo, its teachers or its images cannot be read.
        OutputError: the folder cannot be written, or holds files of another kind.
    """
    hooks = hooks or Silent()
    started = time.perf_counter()
    problems = Problems()
    first: Loaded | None = None
    with problems:
        first = None if config.init is None else load_named(config.init)
    config = replace(config, preset=config.preset or (first.generator.config.preset if first else "universal"))
    with problems:
        _check(config)
    with problems:
        check_start(config, first)
    with problems:
        pick_device(config.device)
    with problems:
        check_folder(config.output)
        _refuse_foreign(config.output)
        if first is not None and config.output.exists() and config.output.samefile(first.folder):
            raise OutputError(
                f"{config.output}: is the generator of --init itself, which would be overwritten",
                hint="choose another -o; --resume is what goes on with an interrupted training",
            )
    opened = open_zoos(config.zoos, config.teachers, problems, hooks)
    with problems:
        _check_preset(config, [entry.zoo for entry in opened])
        check_frame(first, [entry.zoo for entry in opened])
    problems.raise_all()
    team = Team(pick_device(config.device))
    _check_team(config, team)
    device = team.device
    with repeatable(device):
        grounds = []
        for number, entry in enumerate(opened):
            hooks.progress("reading zoos", number, len(opened))
            grounds.append(read_ground(entry, seed_for(config.seed, 1, number), device, hooks, config.views))
        hooks.progress("reading zoos", len(opened), len(opened))
        torch.manual_seed(seed_for(config.seed, 2))
        generator = build_generator(config, opened, grounds, first).to(device)
        if team.is_main:
            make_folder(config.output)
        run = GeneratorRun(config, generator, grounds, team, hooks, "" if first is None else first.digest)
        run.go()
    settings = _settings(config, run, first)
    digest = ""
    if team.is_main:
        generator.load_state_dict(run.best_state)
        digest = save_generator(
            config.output,
            generator,
            generator_card(generator, opened, run.best, config, settings, first),
        )
        (config.output / RESUME).unlink(missing_ok=True)
    digest, run.history = team.from_main((digest, run.history))
    return TrainGeneratorResult(
        folder=config.output,
        digest=digest,
        parameters=sum(p.numel() for p in generator.parameters()),
        steps=config.steps,
        best_step=int(run.best["step"]),
        gain=run.best["gain"],
        history=tuple(run.history),
        seconds=time.perf_counter() - started,
        zoos=tuple(_learned(entry) for entry in opened),
        settings=settings,
    )


def _learned(entry: OpenZoo) -> Learned:
    zoo = entry.zoo
    return Learned(
        name=zoo.folder.resolve().name,
        architecture=zoo.architecture.label,
        data=described(zoo.data),
        classes=len(zoo.class_names),
        trained_on=len(entry.teachers),
        held_out=len(entry.held_out),
    )


def _settings(config: TrainGeneratorConfig, run: GeneratorRun, first: Loaded | None) -> dict[str, Any]:
    """Return the options by their flags, with what the preset or the generator of --init made of those left out."""
    made = run.generator.config
    return {
        "preset": made.preset,
        "init": None if first is None else f"{source_name(first.name)} ({first.digest[:12]})",
        "train": config.train,
        "steps": config.steps,
        "batch-size": config.batch_size,
        "lr": config.lr,
        "max-teachers": config.max_teachers,
        "views": config.views,
        "width": made.width,
        "blocks": made.blocks,
        "attention": made.attention,
        "mask": made.mask,
        "flow": made.flow,
        "shift-weight": run.shift_weight,
        "accumulate": run.pairs,
        "zoo-teachers": config.teachers,
        "seed": config.seed,
    }


def _check(config: TrainGeneratorConfig) -> None:
    if config.preset not in (None, *PRESETS):
        raise GeneratorError(f"unknown preset {config.preset!r}", hint=f"use one of {', '.join(PRESETS)}")
    wanted = (
        ("steps", config.steps, "at least 1", config.steps >= 1),
        ("batch-size", config.batch_size, "at least 2", config.batch_size >= 2),
        ("lr", config.lr, "more than 0 and finite", 0 < config.lr < math.inf),
        ("max-teachers", config.max_teachers, "at least 2", config.max_teachers >= 2),
        ("views", config.views, "at least 1", config.views >= 1),
        ("train", config.train, f"one of {', '.join(TRAINED)}", config.train in TRAINED),
        ("train", config.train, "--preset specialised for it", config.train == "all" or config.kind.prior),
        ("width", config.width, f"a multiple of {HEADS}", _is_width(config.width)),
        ("blocks", config.blocks, "at least 1", config.blocks is None or config.blocks >= 1),
        ("attention", config.attention, f"one of {', '.join(ATTENTIONS)}", config.attention in (None, *ATTENTIONS)),
        ("mask", config.mask, "the full attention for it", not config.mask or config.init or _is_full(config)),
        ("shift-weight", config.shift_weight, "at least 0 and finite", 0 <= (config.shift_weight or 0) < math.inf),
        ("accumulate", config.accumulate, "at least 1", config.accumulate is None or config.accumulate >= 1),
        ("seed", config.seed, "at least 0", config.seed >= 0),
    )
    problems = [f"--{name}: got {value}, expected {range_}" for name, value, range_, fine in wanted if not fine]
    if not config.zoos:
        problems.append("no zoo to train on; name one with --zoo")
    if problems:
        raise WfError(*problems, hint="see wfcli train-generator --help")


def _is_full(config: TrainGeneratorConfig) -> bool:
    return (config.attention or config.kind.attention) == "full"


def _is_width(width: int | None) -> bool:
    return width is None or (width >= HEADS and width % HEADS == 0)


def _check_team(config: TrainGeneratorConfig, team: Team) -> None:
    if config.accumulate is not None and config.accumulate % team.size:
        raise WfError(
            f"--accumulate: got {config.accumulate}, expected a multiple of the {team.size} processes",
            hint="every process takes as many pairs as the others",
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files that are not a generator's but would be replaced, or with a zoo."""
    try:
        ours = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("preset") in PRESETS
    except (OSError, ValueError, AttributeError):
        ours = False
    if ours or is_log(folder / LOG, "gain") or is_run(folder / RESUME):  # a generator, or a run that was interrupted
        return
    found = [name for name in (CARD, CONFIG, WEIGHTS, LOG, RESUME) if (folder / name).exists()]
    problems = [f"{folder}: {name} is there already and is not from train-generator" for name in found]
    if (folder / FILE).exists():
        problems.append(f"{folder}: is a zoo ({FILE}), whose teachers would be joined by a generator's {WEIGHTS}")
    if problems:
        raise OutputError(*problems, hint="choose another -o: a new folder, or that of a generator to replace")


def _check_preset(config: TrainGeneratorConfig, zoos: Sequence[Zoo]) -> None:
    kinds = {(zoo.architecture.label, zoo.class_names, (zoo.base or {}).get("sha256")) for zoo in zoos}
    if config.kind.prior and len(kinds) > 1:
        raise GeneratorError(
            *(
                f"{zoo.folder}: {zoo.architecture.label}, {len(zoo.class_names)} classes, "
                f"{'own random starts' if zoo.base is None else 'base ' + zoo.base['name']}"
                for zoo in zoos
            ),
            hint="a specialised generator belongs to one architecture, base and set of classes; use --preset universal",
        )
