"""The generator that a training starts with: an untrained one for its zoos, or an earlier one that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cosine_similarity

from wfcli.core.curriculum import Ground, soup_subset
from wfcli.core.generator import WeightFormer, fingerprint
from wfcli.core.generator_config import Frame, WeightFormerConfig
from wfcli.core.zoo import Zoo
from wfcli.engine.fitting import LEAST_LIKENESS, Loaded
from wfcli.engine.grounds import OpenZoo
from wfcli.errors import GeneratorError

if TYPE_CHECKING:
    from wfcli.engine.train_generator import TrainGeneratorConfig

OTHER_BASE = "a prior belongs to one base, architecture and set of classes: train without --init"
RAW_LIMIT = 4608  # token widths above this get no raw-row embedder: 512 channels of 3 x 3


def check_start(options: TrainGeneratorConfig, first: Loaded | None) -> None:
    """Refuse to start from a generator of another make than the options ask for.

    Raises:
        GeneratorError: another preset (but `specialised` may start from `universal`), width, attention ...; a mixing is
            to be trained beside a prior that nobody has trained.
    """
    if options.train == "mixing" and (first is None or first.generator.config.frame is None):
        raise GeneratorError(
            "--train mixing: got no generator with a prior to go on from, expected one",
            hint="name a specialised generator with --init; a universal one is nothing but mixing: leave --train out",
        )
    if first is None:
        return
    had = first.generator.config
    problems = []
    if options.preset != had.preset and (had.preset, options.preset) != ("universal", "specialised"):
        problems.append(f"--preset: got {options.preset}, expected {had.preset}")
    for name in ("width", "blocks", "attention", "mask"):
        wanted, found = getattr(options, name), getattr(had, name)
        if wanted not in (None, found):
            problems.append(f"--{name}: got {wanted}, expected {found}")
    if had.flow and not options.flow:
        problems.append("--no-flow: it was trained with flow")
    if problems:
        raise GeneratorError(
            *(f"generator {first.name}: {problem}" for problem in problems),
            hint="what goes on stays of one make: leave these options out, or train without --init",
        )


def build_generator(
    options: TrainGeneratorConfig, zoos: Sequence[OpenZoo], grounds: Sequence[Ground], first: Loaded | None = None
) -> WeightFormer:
    """Build the generator for these zoos, untrained (it gives the soup) or with the weights of `first`.

    Raises:
        GeneratorError: `first` has a prior and belongs to another base.
    """
    config = _config(options, zoos, grounds, first)
    frame = None
    if options.kind.prior:
        zoo, ground = zoos[0].zoo, grounds[0]
        one_frame = ground.teachers if ground.aligned else range(len(ground.digests))
        mean = soup_subset(ground, torch.tensor(list(one_frame)))
        shapes = {name: tuple(tensor.shape) for name, tensor in mean.items() if tensor.is_floating_point()}
        anchors = tuple(
            spec.weight for spec in ground.plan.specs if spec.kind in ("conv", "linear") and spec.weight is not None
        )
        frame = Frame(zoo.architecture.label, zoo.class_names, shapes, anchors, (zoo.base or {}).get("name", ""))
    generator = WeightFormer(replace(config, frame=frame))
    if frame is not None:
        generator.fingerprint.copy_(fingerprint(mean, frame.anchors))
        generator.refer_to(mean)
    if first is not None:
        _check_base(generator, first)
        had = {name: tensor for name, tensor in first.generator.state_dict().items() if name != "fingerprint"}
        generator.load_state_dict({**generator.state_dict(), **had})  # a prior, and other token widths, may be new
    return generator


def _config(
    options: TrainGeneratorConfig, zoos: Sequence[OpenZoo], grounds: Sequence[Ground], first: Loaded | None
) -> WeightFormerConfig:
    """Say what it is made of, and all that it has been trained on once this training is over."""
    preset = options.kind
    attention = options.attention or preset.attention
    config = WeightFormerConfig(
        preset=options.preset or "universal",
        attention="full" if attention == "full" else "cross",
        mask=(preset.mask and attention == "full") if options.mask is None else options.mask,
        flow=options.flow,
        relations=tuple(sorted({"independent" if ground.aligned else "base" for ground in grounds})),
        norms=tuple(sorted({norm for ground in grounds for norm in ground.plan.norms or {"none"}})),
        knowledge=tuple(sorted({"same" if entry.zoo.shares["kind"] == "same" else "split" for entry in zoos})),
        trained_on=tuple(sorted({entry.zoo.architecture.label for entry in zoos})),
    )
    config = replace(config, width=options.width or config.width, blocks=options.blocks or config.blocks)
    if preset.raw_rows:
        stacks = [tokens.weight for ground in grounds for _, tokens, _ in ground.layers if tokens.weight is not None]
        widths = sorted({stack.flatten(2).shape[2] for stack in stacks})
        config = replace(config, raw_widths=tuple(width for width in widths if width <= RAW_LIMIT))
    if first is None:
        return config
    had = first.generator.config
    return replace(
        had,
        preset=config.preset,
        relations=_union(had.relations, config.relations),
        norms=_union(had.norms, config.norms),
        knowledge=_union(had.knowledge, config.knowledge),
        trained_on=_union(had.trained_on, config.trained_on),
        raw_widths=tuple(sorted({*had.raw_widths, *config.raw_widths})),
    )


def _union(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({*a, *b}))


def check_frame(first: Loaded | None, zoos: Sequence[Zoo]) -> None:
    """Refuse to go on with the prior of another architecture or set of classes than that of the zoos.

    Raises:
        GeneratorError: what differs.
    """
    had = None if first is None else first.generator.config.frame
    if first is None or had is None or not zoos:
        return
    problems = []
    zoo = zoos[0]
    if zoo.architecture.label != had.architecture:
        problems.append(f"architecture: got {zoo.architecture.label}, expected {had.architecture}")
    if len(zoo.class_names) != len(had.class_names):
        problems.append(f"classes: got {len(zoo.class_names)}, expected {len(had.class_names)}")
    strangers = [pair for pair in zip(zoo.class_names, had.class_names, strict=False) if pair[0] != pair[1]]
    if strangers:
        got, expected = strangers[0]
        problems.append(f"classes: {len(strangers)} differ, the first: got {got}, expected {expected}")
    if problems:
        raise GeneratorError(*(f"generator {first.name}: {problem}" for problem in problems), hint=OTHER_BASE)


def _check_base(generator: WeightFormer, first: Loaded) -> None:
    """Refuse to go on with the prior of another base; this takes the weights."""
    had = first.generator.config.frame
    if had is None:
        return
    likeness = float(cosine_similarity(generator.fingerprint, first.generator.fingerprint).mean())
    if likeness < LEAST_LIKENESS:
        raise GeneratorError(
            f"generator {first.name}: the zoo's base is not {had.base or 'its base'} (likeness of the weights: got "
            f"{likeness:.2f}, expected above {LEAST_LIKENESS})",
            hint=OTHER_BASE,
        )
