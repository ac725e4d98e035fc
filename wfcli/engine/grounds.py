"""Bring zoos from disk into memory, ready for training a generator: teachers as tokens, images with their answers.

K teachers of the zoo, P images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wfcli.core.architectures import InputConfig, Layout, build_model, head_keys, input_config, match_layout
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.curriculum import Ground, Pool, is_divisible, read_layers
from wfcli.core.data import load_images, to_input
from wfcli.core.devices import training_autocast
from wfcli.core.digests import file_digest
from wfcli.core.methods import soup
from wfcli.core.regime import regime
from wfcli.core.selection import parse_selection
from wfcli.core.training import seed_for
from wfcli.core.views import Views, make_views
from wfcli.core.votes import presence
from wfcli.core.zoo import FILE, Zoo, read_zoo
from wfcli.engine.classes import check_data, head_of
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.plans import plan_of
from wfcli.errors import CheckpointError, DataError, GeneratorError, Problems, SourceError

VALIDATION_IMAGES = 5000
HELD_OUT_SHARE = 0.3  # of the teachers of a zoo that is not held out whole
# How many images the teachers answer at a time: a thousand small ones, fewer large ones.
PIXELS_AT_ONCE = 1000 * 32 * 32
LEAST_AT_ONCE = 64
HoldOut = Literal["zoo", "teachers", "nothing"]


@dataclass(frozen=True)
class OpenZoo:
    """A zoo with those of its teachers that take part, found to fit by their headers alone."""

    zoo: Zoo  # of the teachers that take part
    files: tuple[tuple[Finite, Layout], ...]
    teachers: tuple[int, ...]  # to train on
    held_out: tuple[int, ...]  # to validate on
    digest: str  # sha256 of its zoo.json, which has those of the teachers


def open_zoos(folders: Sequence[Path], chosen: str | None, problems: Problems, hooks: Hooks) -> list[OpenZoo]:
    """Open zoos and check teachers and data; what is wrong with any of them goes to `problems`.

    `chosen` ("0-9,12") says which teachers of each zoo take part, None: all.
    """
    found = []
    seen: set[Path] = set()
    for number, folder in enumerate(folders):
        with problems:
            if folder.resolve() in seen:
                raise SourceError(f"{folder}: the same zoo twice", hint="give every zoo once")
            seen.add(folder.resolve())
            found.append(_open_zoo(folder, chosen, hold_out(number, len(folders)), hooks))
    return found


def hold_out(number: int, zoos: int) -> HoldOut:
    """Say what zoo `number` of `zoos` keeps for validation.

    With four or more zoos, every sixth and the last are held out whole; else each zoo holds out some of its teachers.
    """
    if zoos < 4:
        return "teachers"
    return "zoo" if number % 6 == 5 or number == zoos - 1 else "nothing"


def _open_zoo(folder: Path, chosen: str | None, held: HoldOut, hooks: Hooks) -> OpenZoo:
    zoo = read_zoo(folder)
    if chosen is not None:
        count = len(zoo.teachers)
        numbers = parse_selection(
            chosen, count, option="--zoo-teachers", noun="teacher", plural="teachers", owner=str(folder)
        )
        zoo = replace(zoo, teachers=tuple(zoo.teachers[number] for number in numbers))
    problems = Problems()
    teachers: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    with problems:
        teachers, held_out = _roles(zoo, held)
    files = []
    for path in zoo.paths:
        with problems:
            checkpoint = open_checkpoint(path, f"{folder.resolve().name}/{path.name}")
            layout = match_layout(zoo.architecture, checkpoint.specs, checkpoint.name)
            files.append((Finite(checkpoint), layout))
    heads = [head_of(file.checkpoint, layout.num_classes) for file, layout in files]
    with problems:
        try:
            check_data(zoo.data, ("generator", "validation"), heads, hooks)
        except DataError as error:  # the user named the zoo, not its data
            raise DataError(*(f"{folder}: {problem}" for problem in error.problems), hint=error.hint) from error
    problems.raise_all()
    return OpenZoo(zoo, tuple(files), teachers, held_out, file_digest(folder / FILE))


def _roles(zoo: Zoo, held: HoldOut) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which teachers to train on and which to validate on, two of them at least wherever there are any.

    Those to validate on are spread over the good and the poor ones: on the two best of a zoo, say, no generator would
    gain anything, and the untrained one would be taken for the best.
    """
    count = len(zoo.teachers)
    spare = max(2, round(HELD_OUT_SHARE * count)) if held == "teachers" else 0
    if count < 2 + spare:
        expected = "at least 4: two to train on, two to validate on" if spare else "at least 2"
        raise GeneratorError(
            f"{zoo.folder}: got {count} teacher{'' if count == 1 else 's'}, expected {expected}",
            hint="make more teachers, or give four or more zoos: some are then held out whole"
            if spare
            else "make more teachers, or leave this zoo out",
        )
    everyone = tuple(range(count))
    if held == "zoo":
        return (), everyone
    ranked = sorted(everyone, key=lambda number: zoo.teachers[number].top1)
    spread = {ranked[int((place + 0.5) * count / spare)] for place in range(spare)}
    return tuple(n for n in everyone if n not in spread), tuple(sorted(spread))


def read_ground(opened: OpenZoo, seed: int, device: torch.device, hooks: Hooks, views: int = 2) -> Ground:
    """Read the teachers of a zoo and the images of its generator and validation roles.

    `views`: augmented copies of the generator's images; every teacher answers each of them once. Teachers without a
    base in common come into one frame: those to train on by themselves, those to validate on into theirs.

    Raises:
        ArchitectureError: independent teachers whose net cannot be followed.
        CheckpointError: a teacher has numbers that are not finite, or is not the one that zoo.json describes.
        DataError: images cannot be read.
    """
    zoo = opened.zoo
    states = _read_states(opened, device)
    apart = not _share_base(states, head_keys(zoo.architecture))
    if apart:
        states = _align(opened, states, hooks)
    model = build_model(zoo.architecture, len(zoo.class_names)).to(device)
    plan = plan_of(zoo.architecture, len(zoo.class_names))
    settings = input_config(zoo.architecture)
    layers, constants = read_layers(plan, states, device)
    draw = torch.Generator().manual_seed(seed_for(seed, 1))
    images = load_images(zoo.data, "generator", settings.size)
    checking = load_images(zoo.data, "validation", settings.size, limit=VALIDATION_IMAGES)

    def pool(pixels: Tensor | Views, labels: Tensor) -> Pool:
        answers = _answers(model, states, pixels, settings)
        return Pool(pixels, labels.to(device), answers, presence(answers))

    ground = Ground(
        model=model,
        plan=plan,
        layers=layers,
        constants=constants,
        settings=settings,
        train=pool(make_views(images, views, draw, device), images.labels.repeat(views)),
        validation=pool(checking.pixels[torch.arange(len(checking))].to(device), checking.labels),
        teachers=opened.teachers,
        held_out=opened.held_out,
        digests=tuple(teacher.sha256 for teacher in zoo.teachers),
        aligned=apart,
    )
    return replace(ground, divisible=is_divisible(ground))


def _share_base(states: Sequence[Mapping[str, Tensor]], head: Sequence[str]) -> bool:
    names = [name for name, tensor in states[0].items() if tensor.dim() >= 2 and name not in head]
    return regime(states, names).shared_base


def _align(opened: OpenZoo, states: Sequence[dict[str, Tensor]], hooks: Hooks) -> list[dict[str, Tensor]]:
    from wfcli.engine.align import find_frame

    zoo, aligned = opened.zoo, list(states)
    reference: dict[str, Tensor] | None = None
    for numbers in (opened.teachers, opened.held_out):
        if numbers:
            some = [states[number] for number in numbers]
            found = find_frame(zoo.architecture, len(zoo.class_names), some, 0, hooks, reference=reference)
            for number, permutations in zip(numbers, found.permutations, strict=True):
                aligned[number] = found.symmetry.permuted(states[number], permutations)
            reference = soup([aligned[number] for number in numbers])
    return aligned


def _read_states(opened: OpenZoo, device: torch.device) -> list[dict[str, Tensor]]:
    changed = [
        f"{file.checkpoint.name}: got sha256 {file.checkpoint.digest()[:12]}..., expected {teacher.sha256[:12]}..."
        for (file, _), teacher in zip(opened.files, opened.zoo.teachers, strict=True)
        if file.checkpoint.digest() != teacher.sha256
    ]
    if changed:
        hint = f"these are not the files that {FILE} describes: make the zoo again with wfcli train-teachers"
        raise CheckpointError(*changed, hint=hint)
    states = [
        {name: tensor.to(device) for name, tensor in layout.timm_view(file).items()} for file, layout in opened.files
    ]
    raise_nonfinite([file for file, _ in opened.files])
    return states


@torch.no_grad()
def _answers(
    model: nn.Module, states: Sequence[Mapping[str, Tensor]], pixels: Tensor | Views, settings: InputConfig
) -> Tensor:
    """Return the log-probabilities of K teachers on uint8 images [P, 3, H, W]: [K, P, C]."""
    at_once = max(LEAST_AT_ONCE, PIXELS_AT_ONCE // settings.size**2)
    answers: list[list[Tensor]] = [[] for _ in states]
    for part in torch.split(torch.arange(len(pixels)), at_once):
        x = to_input(pixels[part], settings)  # once for all teachers: it may have to be decoded
        for state, said in zip(states, answers, strict=True):
            model.load_state_dict(dict(state))
            model.eval()
            with training_autocast(x.device, model):
                logits = model(x)
            said.append(logits.float().log_softmax(1))
    return torch.stack([torch.cat(said) for said in answers])
