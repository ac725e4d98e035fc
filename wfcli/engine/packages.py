"""What goes to the Hub: a student, a generator or a zoo, checked as a whole before anything is sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wfcli.core.architectures import Layout, find_architecture, match_layout
from wfcli.core.checkpoint import INDEX_SUFFIX, Checkpoint, file_digest, open_checkpoint, write_checkpoint
from wfcli.core.hub_cards import complete_card, write_card
from wfcli.core.hub_upload import CARD
from wfcli.core.paths import local_path
from wfcli.core.pretrained import BASE
from wfcli.core.safetensors_io import read_header
from wfcli.core.zoo import FILE as ZOO
from wfcli.core.zoo import Zoo, read_zoo
from wfcli.engine import hub_texts
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.errors import CheckpointError, GeneratorError, Problems, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from wfcli.engine.push import PushConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
OURS = "push takes a student (a .safetensors file of wfcli), the folder of a generator, or a zoo"


@dataclass(frozen=True)
class Package:
    """The files of a repository, by their names there: on disk, or their bytes."""

    kind: Literal["student", "generator", "zoo"]
    files: dict[str, Path | bytes]

    @property
    def card(self) -> str:
        """The text of README.md."""
        content = self.files[CARD]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def pack(config: PushConfig, repo: str, folder: Path) -> Package:
    """Recognise what is to be pushed, check it, and write its card; weights in other names are written to `folder`.

    Raises:
        SourceError: it is not there, or nothing of ours.
        CheckpointError, ArchitectureError, GeneratorError: it is damaged, or does not fit what it says of itself.
    """
    path = local_path(config.source)
    if not path.exists():
        raise SourceError(f"{config.source}: no such file or folder", hint=OURS)
    if path.is_dir() and (path / ZOO).is_file():
        return _pack_zoo(config, repo, path)
    if path.is_dir() and not any(path.glob(f"*{INDEX_SUFFIX}")):
        return _pack_generator(config, path)
    return _pack_student(config, repo, path, folder)


def _pack_student(config: PushConfig, repo: str, path: Path, folder: Path) -> Package:
    checkpoint = open_checkpoint(path)
    written = (checkpoint.provenance or {}).get("architecture")
    if written is None:
        raise CheckpointError(f"{checkpoint.name}: not written by wfcli: it does not say which net it is of", hint=OURS)
    layout = match_layout(find_architecture(written["name"], written.get("args")), checkpoint.specs, checkpoint.name)
    measured = None if config.metrics is None else hub_texts.read_metrics(config.metrics, checkpoint)
    checked = Finite(checkpoint)
    for key in checked:  # its weights as a whole are read before anything is sent
        for _ in checked.pieces(key):
            pass
    raise_nonfinite([checked])
    from wfcli.core.timm_config import timm_config  # torch and timm

    classes = (checkpoint.provenance or {}).get("classes")
    described = timm_config(layout.arch, layout.num_classes, classes)
    card = write_card(
        {**hub_texts.student_metadata(checkpoint), "license": config.license},
        hub_texts.student_text(repo, checkpoint, layout, measured),
        repo.partition("/")[2],
        measured,
    )
    files: dict[str, Path | bytes] = {
        CARD: card.encode(),
        CONFIG: (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: _timm_weights(checkpoint, layout, folder),
    }
    return Package("student", files)


def _timm_weights(checkpoint: Checkpoint, layout: Layout, folder: Path) -> Path:
    """Return one file with timm's names: the checkpoint's own where it is that, else a copy, tensor by tensor."""
    view = layout.timm_view(checkpoint)
    shapes = {timm_key: layout.to_timm[key][1] for timm_key, (key, _) in layout.to_file.items()}
    if checkpoint.files == (checkpoint.path,) and checkpoint.path.suffix == ".safetensors":
        stored = {key: spec.shape for key, spec in read_header(checkpoint.path).specs.items()}
        if stored == shapes:
            return checkpoint.path
    specs = {key: replace(checkpoint.specs[layout.to_file[key][0]], shape=shape) for key, shape in shapes.items()}
    tensors: Iterator[tuple[str, Tensor]] = ((key, view[key]) for key in specs)
    write_checkpoint(folder / WEIGHTS, specs, tensors, checkpoint.provenance or {})
    return folder / WEIGHTS


def _pack_generator(config: PushConfig, path: Path) -> Package:
    if config.metrics is not None:
        raise SourceError(f"--metrics goes with a student, got the folder {path.name}", hint="leave it out")
    if missing := [name for name in (CONFIG, WEIGHTS, CARD) if not (path / name).is_file()]:
        raise SourceError(f"{config.source}: holds no generator and no zoo: {', '.join(missing)} missing", hint=OURS)
    from wfcli.core.generator_config import config_from_dict
    from wfcli.core.generator_files import load_generator

    generator, _ = load_generator(path, path.resolve().name)
    if generator.config != config_from_dict(json.loads((path / CONFIG).read_text(encoding="utf-8"))):
        raise GeneratorError(
            f"{path / CONFIG}: not that of {WEIGHTS}: a training that was to replace them was killed",
            hint="the same wfcli train-generator with --resume completes it",
        )
    try:
        text = (path / CARD).read_text(encoding="utf-8")
    except ValueError as error:
        raise GeneratorError(f"{path / CARD}: is not text", hint="write it as UTF-8") from error
    card = complete_card(text, {**hub_texts.GENERATOR, "license": config.license}, str(path / CARD))
    own = {BASE: path / BASE} if (path / BASE).is_file() else {}  # what a specialised one belongs to
    for base in own.values():
        open_checkpoint(base)
    return Package("generator", {CARD: card.encode(), CONFIG: path / CONFIG, WEIGHTS: path / WEIGHTS, **own})


def _pack_zoo(config: PushConfig, repo: str, path: Path) -> Package:
    if config.metrics is not None:
        raise SourceError(f"--metrics goes with a student, got the zoo {path.name}", hint="leave it out")
    zoo = read_zoo(path)
    _check_teachers(zoo)
    card = write_card({**hub_texts.zoo_metadata(zoo), "license": config.license}, hub_texts.zoo_text(repo, zoo))
    return Package("zoo", {CARD: card.encode(), ZOO: path / ZOO, **{file.name: file for file in zoo.paths}})


def _check_teachers(zoo: Zoo) -> None:
    problems = Problems()
    for teacher, file in zip(zoo.teachers, zoo.paths, strict=True):
        with problems:
            match_layout(zoo.architecture, open_checkpoint(file).specs, file.name)
            got = file_digest(file)
            if got != teacher.sha256:
                raise CheckpointError(
                    f"{file.name}: got sha256 {got[:12]}, expected {teacher.sha256[:12]} as in {ZOO}",
                    hint="make the zoo again: wfcli train-teachers makes what is missing",
                )
    problems.raise_all()
