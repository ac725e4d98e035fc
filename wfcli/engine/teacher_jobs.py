"""One teacher and all that it takes, so that it can be made anywhere: several at a time, each in its own process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wfcli.core.architectures import Architecture, build_model, input_config
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.images import Images
from wfcli.core.training import accuracy, repeatable
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.recipes import Recipe, steps_of, train_by
from wfcli.engine.workers import run_in_workers
from wfcli.errors import CheckpointError

VERSIONS = ("wfcli", "torch", "timm")


@dataclass(frozen=True)
class TeacherJob:
    """A teacher to be made. It can be pickled."""

    path: Path
    stage: str  # its name in messages
    architecture: Architecture
    recipe: Recipe
    batch_size: int
    images: Images  # its own
    validation: Images
    start: Mapping[str, Tensor] | None  # None: a random start from `seed`
    seed: int
    provenance: Mapping[str, Any]


def make_teacher(job: TeacherJob, device: torch.device, hooks: Hooks) -> tuple[str, float]:
    """Train the teacher and write its file; return the file's sha256 and the accuracy (0..1) on `validation`.

    Raises:
        WfError: the loss is no longer finite.
        OutputError: the file cannot be written.
    """
    inputs = input_config(job.architecture)
    with repeatable(device):
        model = _start_model(job, device)
        train_by(job.recipe, model, job.images, inputs, job.batch_size, job.stage, hooks)
        autocast = training_autocast(device, model)
        top1 = round(accuracy(model, job.validation, inputs, device=device, autocast=autocast), 6)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return save_state(job.path, state, {**job.provenance, "top1": top1}), top1


def make_teachers(jobs: Sequence[TeacherJob], processes: int, device: str, hooks: Hooks) -> list[tuple[str, float]]:
    """Make all teachers, so many at a time; one that is there already and was made in the same way is kept.

    Returns what `make_teacher` does, in the order of `jobs`. An error or Ctrl-C stops all that are being made.

    Raises:
        WfError: as `make_teacher`; a process that made a teacher was killed.
    """
    made = {number: kept for number, job in enumerate(jobs) if (kept := _kept(job, hooks)) is not None}
    missing = [number for number in range(len(jobs)) if number not in made]
    hooks.progress("teachers", len(made), len(jobs))
    if processes == 1 or len(missing) < 2:
        for number in missing:
            made[number] = make_teacher(jobs[number], pick_device(device), hooks)
            hooks.progress("teachers", len(made), len(jobs), top1=made[number][1])
        return [made[number] for number in range(len(jobs))]
    missing.sort(key=lambda number: -_cost(jobs[number]))  # the longest first: none is left over at the end
    threads = max(1, torch.get_num_threads() // processes)
    task = partial(_make_alone, device=device, threads=threads)
    done = run_in_workers(task, [jobs[number] for number in missing], processes, lambda job: str(job.path))
    with closing(done):
        for turn, one in done:
            made[missing[turn]] = one
            hooks.progress("teachers", len(made), len(jobs), top1=one[1])
    return [made[number] for number in range(len(jobs))]


def _make_alone(job: TeacherJob, device: str, threads: int) -> tuple[str, float]:
    torch.set_num_threads(threads)
    return make_teacher(job, pick_device(device), Silent())


def _cost(job: TeacherJob) -> int:
    return steps_of(job.recipe, len(job.images), job.batch_size) * job.batch_size


def _start_model(job: TeacherJob, device: torch.device) -> nn.Module:
    torch.manual_seed(job.seed)
    model = build_model(job.architecture, len(job.images.class_names))
    if job.start is not None:
        model.load_state_dict({**model.state_dict(), **job.start})  # a file may lack BatchNorm's counters
    return model.to(memory_format=torch.channels_last).to(device)


def _kept(job: TeacherJob, hooks: Hooks) -> tuple[str, float] | None:
    """Return digest and accuracy of the file that is there if it was made in this way, whatever the versions.

    The same base at another commit of the Hub is the same base: its sha256 stands there too.
    """
    if not job.path.exists():
        return None
    try:
        checkpoint = open_checkpoint(job.path)
    except CheckpointError:
        hooks.warn(f"{job.path}: damaged, made again")
        return None
    found = checkpoint.provenance or {}
    if _way({key: value for key, value in found.items() if key != "top1"}) != _way(job.provenance):
        hooks.warn(f"{job.path}: made in another way, replaced")
        return None
    return checkpoint.digest(), float(found["top1"])


def _way(provenance: Mapping[str, Any]) -> Any:
    """Return what of a record makes another teacher, as it is read back from JSON."""
    bases = [{key: value for key, value in base.items() if key != "revision"} for base in provenance.get("sources", ())]
    kept = {key: value for key, value in provenance.items() if key not in VERSIONS}
    return json.loads(json.dumps({**kept, "sources": bases}))
