"""Teachers whose heads know other classes: the student keeps one head, has them all stacked, or none.

T teachers, C_t classes of one of them, C of the student, N features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wfcli.core.architectures import Architecture, head_keys
from wfcli.core.methods import weighted_sum
from wfcli.engine.provenance import class_names
from wfcli.engine.teachers import Teachers
from wfcli.errors import CheckpointError, WfError

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("keep:N", "stack", "drop")
Rows = tuple[tuple[tuple[int, int], ...], ...]  # of every class of the student: teacher and number of its class


@dataclass(frozen=True)
class Heads:
    """The student's head: for every class the rows it is the mean of, each a teacher and the number of its class."""

    names: frozenset[str]  # of its tensors, in the file
    rows: Rows
    centred: bool  # heads that answer side by side are brought to one level
    classes: tuple[str, ...] | None  # None: not known


def check_heads(how: str) -> None:
    """Refuse what `--heads` does not know.

    Raises:
        WfError: it is none of `HEADS`.
    """
    kind, _, number = how.partition(":")
    if how not in ("stack", "drop") and not (kind == "keep" and number.isdecimal()):
        raise WfError(f"unknown --heads {how!r}", hint=f"use one of {', '.join(HEADS)}; keep:0 is that of the first")


def join_heads(teachers: Teachers, arch: Architecture, how: str) -> tuple[Teachers, Heads]:
    """Return the teachers with the layout that the student will have, and how its head is made.

    Where all teachers say which classes they know, a class that several of them know stands once in a stacked head; one
    whose name a teacher has twice stays apart.

    Raises:
        WfError: `keep:N` with fewer teachers.
        CheckpointError: a file names more or fewer classes than its head has.
    """
    kind, _, number = how.partition(":")
    layout = teachers.layout
    files = [layout.to_file[key][0] for key in head_keys(arch) if key in layout.to_file]
    counts = [checkpoint.specs[files[0]].shape[0] for checkpoint in teachers.checkpoints]
    known = [class_names(checkpoint) for checkpoint in teachers.checkpoints]
    wrong = [
        f"{checkpoint.name}: {files[0]}: got {len(names)} names of classes, expected {count} as the head has rows"
        for checkpoint, names, count in zip(teachers.checkpoints, known, counts, strict=True)
        if names is not None and len(names) != count
    ]
    if wrong:
        raise CheckpointError(*wrong, hint="the file is not what it says of itself: write it again")
    if kind == "keep":
        kept = int(number)
        if kept >= len(counts):
            raise WfError(f"--heads {how}: got {len(counts)} teachers, from 0", hint=f"use keep:0 to {len(counts) - 1}")
        rows: Rows = tuple(((kept, row),) for row in range(counts[kept]))
        classes = known[kept]
    elif kind == "drop":
        rows, classes = (), None
    else:
        rows, classes = _stacked(counts, known)
    shapes = {name: (len(rows), *layout.files[name][1:]) for name in files}
    if kind == "drop":
        left = {name: shape for name, shape in layout.files.items() if name not in files}
        layout = replace(layout, files=left, to_timm={name: layout.to_timm[name] for name in left})
    else:
        to_timm = {
            name: (timm_name, (len(rows), *shape[1:]) if name in shapes else shape)
            for name, (timm_name, shape) in layout.to_timm.items()
        }
        layout = replace(layout, num_classes=len(rows), files={**layout.files, **shapes}, to_timm=to_timm)
    return replace(teachers, layout=layout), Heads(frozenset(files), rows, kind == "stack", classes)


def _stacked(counts: Sequence[int], known: Sequence[tuple[str, ...] | None]) -> tuple[Rows, tuple[str, ...]]:
    """Return the rows of all heads, by the names of their classes or else one after the other."""
    found: dict[str, list[tuple[int, int]]] = {}
    named = all(known)
    twice = {name for names in known for name, times in Counter(names).items() if times > 1}
    for teacher, count in enumerate(counts):
        names = known[teacher]
        for row in range(count):
            name = names[row] if names else str(row)
            if not named or name in twice:
                name = f"teacher {teacher}: {name}" + (f" ({row})" if name in twice else "")
            found.setdefault(name, []).append((teacher, row))
    return tuple(map(tuple, found.values())), tuple(found)


def head_tensor(heads: Heads, name: str, teachers: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensor:
    """Return the student's head, weight [C, N] or bias [C], from the teachers' [C_t, N] or [C_t], float32.

    Heads that are stacked are centred first: what is added to all rows of a head alike leaves its answers as they are,
    but would lift its classes above those of another head. A class that several teachers know is their mean by
    `weights`, of the T teachers, 0..1.
    """
    import torch

    own = {teacher for row in heads.rows for teacher, _ in row}
    read = {teacher: teachers[teacher][name].float() for teacher in own}
    if heads.centred:
        read = {teacher: tensor - tensor.mean(0) if len(tensor) > 1 else tensor for teacher, tensor in read.items()}
    made = []
    for rows in heads.rows:
        total = sum(weights[teacher] for teacher, _ in rows)
        shares = [weights[teacher] / total if total else 1 / len(rows) for teacher, _ in rows]
        made.append(weighted_sum((read[teacher][row] for teacher, row in rows), shares))
    return torch.stack(made)
