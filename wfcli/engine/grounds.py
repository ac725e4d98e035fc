"""Bring zoos from disk into memory, ready for training a generator: teachers as tokens, images with their answers.

K teachers of the zoo, P images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from wfcli.core.architectures import InputConfig, build_model, head_keys, input_config, match_layout
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.curriculum import Ground, Pool, read_layers
from wfcli.core.data import augment, load_images, to_input
from wfcli.core.devices import training_autocast
from wfcli.core.images import crop_padding
from wfcli.core.plan import plan_layers
from wfcli.core.training import seed_for
from wfcli.core.zoo import Zoo
from wfcli.errors import GeneratorError

VIEWS = 4  # augmented copies of the generator's images; every teacher answers each of them once
VALIDATION_IMAGES = 1000
HoldOut = Literal["zoo", "teachers", "nothing"]


def hold_out(number: int, zoos: int) -> HoldOut:
    """Say what zoo `number` of `zoos` keeps for validation: with four or more zoos, every sixth and the last are held out whole."""
    if zoos < 4:
        return "teachers"
    return "zoo" if number % 6 == 5 or number == zoos - 1 else "nothing"


def read_ground(zoo: Zoo, held: HoldOut, chosen: str | None, seed: int, device: torch.device) -> Ground:
    """Read a zoo's teachers (all, or those numbered in `chosen`, "0-9") and the images of its generator and validation roles.

    Raises:
        GeneratorError: fewer than two teachers to train on or to validate on.
        CheckpointError, ArchitectureError, DataError: teachers or images cannot be read.
    """
    numbers = _numbers(zoo, chosen)
    teachers, held_out = _roles(zoo, len(numbers), held)
    model = build_model(zoo.architecture, len(zoo.class_names)).to(device)
    plan = plan_layers(model, head_keys(zoo.architecture)[0].removesuffix(".weight"))
    settings = input_config(zoo.architecture)
    states = [_state(zoo, number, device) for number in numbers]
    layers, constants = read_layers(plan, states, device)
    draw = torch.Generator().manual_seed(seed_for(seed, 1))
    images = load_images(zoo.data, zoo.roles["generator"], settings.size)
    pixels = images.pixels[torch.arange(len(images))]
    views = [augment(pixels, draw, images.flip, crop_padding(pixels)) for _ in range(VIEWS)]
    checking = load_images(zoo.data, zoo.roles["validation"], settings.size, limit=VALIDATION_IMAGES)

    def pool(pixels: Tensor, labels: Tensor) -> Pool:
        pixels = pixels.to(device)
        return Pool(pixels, labels.to(device), _answers(model, states, pixels, settings))

    return Ground(
        name=zoo.folder.name,
        model=model,
        plan=plan,
        layers=layers,
        constants=constants,
        settings=settings,
        train=pool(torch.cat(views), images.labels.repeat(VIEWS)),
        validation=pool(checking.pixels[torch.arange(len(checking))], checking.labels),
        teachers=teachers,
        held_out=held_out,
        digests=tuple(zoo.teachers[number].sha256 for number in numbers),
    )


def _roles(zoo: Zoo, count: int, held: HoldOut) -> tuple[tuple[int, ...], tuple[int, ...]]:
    everyone = tuple(range(count))
    spare = max(2, count // 5)
    teachers, held_out = {
        "zoo": ((), everyone),
        "nothing": (everyone, ()),
        "teachers": (everyone[:-spare], everyone[-spare:]),
    }[held]
    if (
        len(teachers) == 1
        or len(held_out) == 1
        or not (len(teachers) + len(held_out))
        or (held == "teachers" and not teachers)
    ):
        raise GeneratorError(
            f"{zoo.folder}: got {count} teachers, too few to train on two and hold {spare} out for validation",
            hint="make more teachers, or give four or more zoos, of which some are held out whole",
        )
    return teachers, held_out


def _numbers(zoo: Zoo, chosen: str | None) -> list[int]:
    """Return which teachers of the zoo to take: all, or "0-9,12"."""
    if chosen is None:
        return list(range(len(zoo.teachers)))
    numbers: list[int] = []
    for part in chosen.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise GeneratorError(f"--teachers {chosen!r}: {part!r} is no number or range", hint="write it like 0-9,12")
        numbers += range(int(first), int(last or first) + 1)
    missing = [n for n in numbers if n >= len(zoo.teachers)]
    if missing:
        raise GeneratorError(
            f"{zoo.folder}: --teachers {chosen}: no teacher {missing[0]}, it has 0 to {len(zoo.teachers) - 1}"
        )
    return numbers


def _state(zoo: Zoo, number: int, device: torch.device) -> Mapping[str, Tensor]:
    path = zoo.paths[number]
    checkpoint = open_checkpoint(path)
    layout = match_layout(zoo.architecture, checkpoint.specs, checkpoint.name)
    return {name: tensor.to(device) for name, tensor in layout.timm_view(checkpoint).items()}


@torch.no_grad()
def _answers(model: nn.Module, states: Sequence[Mapping[str, Tensor]], pixels: Tensor, settings: InputConfig) -> Tensor:
    """Return the log-probabilities of K teachers on uint8 images [P, 3, H, W]: [K, P, C]."""
    answers = []
    for state in states:
        model.load_state_dict(dict(state))
        model.eval()
        parts = []
        for start in range(0, len(pixels), 1000):
            x = to_input(pixels[start : start + 1000], settings)
            with training_autocast(x.device, model):
                logits = model(x)
            parts.append(logits.float().log_softmax(1))
        answers.append(torch.cat(parts))
    return torch.stack(answers)
