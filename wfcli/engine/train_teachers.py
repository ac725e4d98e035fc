"""`wfcli train-teachers`: a zoo of teachers, each with its own recipe and its own share of the images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config, match_layout
from wfcli.core.checkpoint import Checkpoint, open_checkpoint, save_state, write_json
from wfcli.core.data import DataSpec, load_images
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.outputs import check_folder, make_folder
from wfcli.core.sources import resolve_source
from wfcli.core.training import accuracy, repeatable
from wfcli.core.zoo import FILE, ROLES, Zoo, ZooTeacher, class_counts, share_images, zoo_to_json
from wfcli.engine.classes import check_data
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.provenance import data_record, made_by
from wfcli.engine.recipes import Recipe, draw_recipe, train_by
from wfcli.errors import CheckpointError, OutputError, Problems, WfError

VERSIONS = ("wfcli", "torch", "timm")


@dataclass(frozen=True)
class TrainTeachersConfig:
    """What the zoo is made of. `init` is the source of a checkpoint; without it each teacher starts at random."""

    architecture: Architecture
    data: DataSpec
    count: int
    output: Path
    init: str | None = None
    epochs: float = 10.0
    seed: int = 0
    shares: str = "same"
    concentration: float = 0.3
    images_per_teacher: int | None = None
    same_recipe: bool = False
    lr: float = 0.05
    batch_size: int = 128
    device: str = "auto"


@dataclass(frozen=True)
class TrainTeachersResult:
    """The folder, what `zoo.json` in it says, and how long it took."""

    folder: Path
    zoo: Mapping[str, Any]
    seconds: float


def train_teachers(config: TrainTeachersConfig, hooks: Hooks | None = None) -> TrainTeachersResult:
    """Train the teachers one after the other and write `config.output` with its `zoo.json`.

    The same config gives the same bytes. Resumable: a teacher that is there already and was made in the same way is
    kept. The files are in timm's layout. With `init` the base's head is kept if it is for the same classes; else it is
    drawn anew, the same for all teachers.

    Raises:
        WfError: options out of range; a loss that is no longer finite.
        SourceError, CheckpointError, ArchitectureError: `init` leads nowhere, is damaged or does not fit.
        DataError: the data is not there, or the shares do not come about.
        OutputError: the folder cannot be written, or holds checkpoints that would not belong to this zoo.
    """
    hooks = hooks or Silent()
    began = time.monotonic()
    base = None
    problems = Problems()
    with problems:
        _check(config)
    with problems:
        pick_device(config.device)
    with problems:
        check_folder(config.output)
        _refuse_foreign(config)
    with problems:
        base = None if config.init is None else _open_base(config)
    with problems:
        check_data(config.data, (ROLES["teachers"], ROLES["validation"]), (), hooks)
    problems.raise_all()
    device = pick_device(config.device)
    inputs = input_config(config.architecture)
    images = load_images(config.data, ROLES["teachers"], inputs.size)
    validation = load_images(config.data, ROLES["validation"], inputs.size)
    labels = images.labels.tolist()
    shares = share_images(
        config.shares,
        labels,
        config.count,
        concentration=config.concentration,
        images_per_teacher=config.images_per_teacher,
        seed=config.seed,
    )
    start = None if base is None else _start_from(base, config, images.class_names)
    make_folder(config.output)
    teachers = []
    with repeatable(device):
        for index, share in enumerate(shares):
            recipe = draw_recipe(config.seed, index, config.lr, config.epochs, config.same_recipe, images.flip)
            provenance = _provenance(config, index, recipe, share, base, images.class_names)
            path = config.output / f"teacher-{index:02d}.safetensors"
            written = _kept(path, provenance, hooks)
            if written is None:
                own = images if share is None else images.subset(torch.tensor(share))
                model = _start_model(config, index, len(images.class_names), start, device)
                stage = f"{path.stem} of {config.count}"
                train_by(recipe, model, own, inputs, config.batch_size, stage, hooks)
                top1 = accuracy(model, validation, inputs, device=device, autocast=training_autocast(device, model))
                digest = save_state(path, _state_of(model), {**provenance, "top1": round(top1, 6)})
                written = (digest, round(top1, 6))
            counts = class_counts(labels, share, len(images.class_names))
            teachers.append(
                ZooTeacher(path.name, written[0], share, counts, asdict(recipe), written[1], config.seed + index)
            )
            hooks.progress("teachers", index + 1, config.count, top1=written[1])
    zoo = Zoo(
        folder=config.output,
        architecture=config.architecture,
        data=config.data,
        class_names=images.class_names,
        base=None if base is None else {"name": base.name, "sha256": base.digest()},
        shares=_shares(config),
        roles=ROLES,
        teachers=tuple(teachers),
    )
    written_zoo = zoo_to_json(zoo)
    write_json(config.output / FILE, written_zoo)
    return TrainTeachersResult(config.output, written_zoo, time.monotonic() - began)


def _check(config: TrainTeachersConfig) -> None:
    problems = [
        f"--{name}: got {value}, expected {wanted}"
        for name, value, wanted, fine in (
            ("count", config.count, "at least 1", config.count >= 1),
            ("epochs", config.epochs, "more than 0", config.epochs > 0),
            ("lr", config.lr, "more than 0", config.lr > 0),
            ("batch-size", config.batch_size, "at least 2", config.batch_size >= 2),
            ("seed", config.seed, "at least 0", config.seed >= 0),
        )
        if not fine
    ]
    if problems:
        raise WfError(*problems, hint="see wfcli train-teachers --help")


def _refuse_foreign(config: TrainTeachersConfig) -> None:
    """Refuse a folder with checkpoints that a reader of the folder would take for teachers of this zoo."""
    own = {f"teacher-{index:02d}.safetensors" for index in range(config.count)}
    foreign = sorted(p.name for p in config.output.glob("*.safetensors") if p.name not in own)
    if foreign:
        raise OutputError(
            *(f"{config.output}: {name} is there already and would not be a teacher of this zoo" for name in foreign),
            hint="choose another -o, or remove these files",
        )


def _open_base(config: TrainTeachersConfig) -> Checkpoint:
    assert config.init is not None
    source = resolve_source(config.init)
    base = open_checkpoint(source.path, source.name)
    match_layout(config.architecture, base.specs, base.name)
    return base


def _start_from(base: Checkpoint, config: TrainTeachersConfig, class_names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the base's weights in timm's keys, with a head for these classes: its own or one drawn from the seed."""
    layout = match_layout(config.architecture, base.specs, base.name)
    checked = Finite(base)
    state = dict(layout.timm_view(checked))
    raise_nonfinite([checked])
    known = (base.provenance or {}).get("classes")
    if layout.num_classes != len(class_names) or (known is not None and list(known) != list(class_names)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            fresh = build_model(config.architecture, len(class_names)).state_dict()
        state.update({key: fresh[key] for key in head_keys(config.architecture) if key in fresh})
    return state


def _start_model(
    config: TrainTeachersConfig, index: int, classes: int, start: Mapping[str, Tensor] | None, device: torch.device
) -> nn.Module:
    torch.manual_seed(config.seed + index)
    model = build_model(config.architecture, classes)
    if start is not None:
        model.load_state_dict({**model.state_dict(), **start})  # a file may lack BatchNorm's counters
    return model.to(memory_format=torch.channels_last).to(device)


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _shares(config: TrainTeachersConfig) -> dict[str, Any]:
    return {
        "kind": config.shares,
        "concentration": config.concentration if config.shares == "dirichlet" else None,
        "images_per_teacher": config.images_per_teacher,
        "seed": config.seed,
    }


def _provenance(
    config: TrainTeachersConfig,
    index: int,
    recipe: Recipe,
    share: tuple[int, ...] | None,
    base: Checkpoint | None,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    seen = json.dumps("all" if share is None else share)
    return {
        **made_by("train-teachers", config.architecture, config.seed),
        "sources": [] if base is None else [{"name": base.name, "sha256": base.digest()}],
        "teacher": index,
        "data": data_record(config.data),
        "classes": list(class_names),
        "share": {**_shares(config), "images": "all" if share is None else len(share), "sha256": _sha256(seen)},
        "recipe": {**asdict(recipe), "batch_size": config.batch_size},
    }


def _kept(path: Path, provenance: Mapping[str, Any], hooks: Hooks) -> tuple[str, float] | None:
    """Return digest and accuracy of the teacher in `path` if it was made in this way, whatever the versions."""
    if not path.exists():
        return None
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        hooks.warn(f"{path}: damaged, made again")
        return None
    found = checkpoint.provenance or {}
    wanted = json.loads(json.dumps(provenance))
    if {k: v for k, v in found.items() if k != "top1" and k not in VERSIONS} != {
        k: v for k, v in wanted.items() if k not in VERSIONS
    }:
        hooks.warn(f"{path}: made in another way, replaced")
        return None
    return checkpoint.digest(), float(found["top1"])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
