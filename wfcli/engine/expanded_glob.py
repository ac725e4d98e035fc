"""Recognise a glob that the shell expanded, so that teachers turned into checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from wfcli.core.zoo import FILE
from wfcli.errors import CheckpointError


def refuse_expanded_glob(checkpoints: Sequence[str], teachers: Sequence[str]) -> None:
    """Refuse ``eval student --teachers zoo/*.safetensors`` without quotes: all but one became checkpoints.

    The signs: beside a teacher that is a file, and the only one of its folder, lie checkpoints whose names differ from
    its own by numbers, or that are in the same zoo. Where it is the only teacher of all, which is an error in any case,
    several checkpoints beside it are a sign too. Where there are more, the checkpoints must follow it in the folder
    without a gap, as in a glob, and be two at least or beside every teacher: nets of one zoo may be compared.

    Raises:
        CheckpointError: it looks like that; all those globs.
    """
    files = [path for path in map(Path, teachers) if path.is_file()]
    given = [path for path in map(Path, checkpoints) if path.is_file()]
    folders = [path.resolve().parent for path in files]
    alone = [path for path, folder in zip(files, folders, strict=True) if folders.count(folder) == 1]
    found = {teacher: beside for teacher in alone if (beside := _expanded(teacher, given, len(teachers) == 1))}
    if len(found) < len(teachers):
        found = {teacher: beside for teacher, beside in found.items() if len(beside) > 1}
    if not found:
        return
    problems = []
    for teacher, beside in found.items():
        names = beside[0].name + (f" and {len(beside) - 1} more" if len(beside) > 1 else "")
        got = (
            f"expected at least 2 teachers, got only {teacher.name}" if len(teachers) == 1 else f"{teacher}: a teacher"
        )
        problems.append(
            f"{got}; {names} beside it came as checkpoints: it looks as if the shell had expanded the glob after "
            "--teachers"
        )
    globs = " ".join(dict.fromkeys(f"--teachers '{teacher.parent}/*{teacher.suffix}'" for teacher in found))
    raise CheckpointError(*problems, hint=f"quote the glob, {globs}, or repeat --teachers before every file")


def _expanded(teacher: Path, checkpoints: Sequence[Path], only: bool) -> list[Path]:
    """Return the checkpoints that look as if they came from the same glob as `teacher`; nothing where none do."""
    folder = teacher.resolve().parent
    beside = [path for path in checkpoints if path.resolve().parent == folder and path.name != teacher.name]
    zoo = _names_in_zoo(folder)

    def is_relative(path: Path) -> bool:
        return _without_numbers(path) == _without_numbers(teacher) or {path.name, teacher.name} <= zoo

    relatives = [path for path in beside if is_relative(path)]
    if only:
        others = [path for path in beside if path not in relatives]
        return relatives + others if relatives or len(others) > 1 else []
    following = sorted(path.name for path in folder.iterdir() if is_relative(path) and path.name > teacher.name)
    return relatives if {path.name for path in relatives} == set(following[: len(relatives)]) else []


def _without_numbers(path: Path) -> str:
    return "".join(letter for letter in path.name if not letter.isdigit())


def _names_in_zoo(folder: Path) -> set[str]:
    """Return the teachers that a zoo.json there names; nothing where there is none that can be read."""
    try:
        return {entry["file"] for entry in json.loads((folder / FILE).read_text(encoding="utf-8"))["teachers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
