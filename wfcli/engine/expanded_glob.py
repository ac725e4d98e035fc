"""Recognise a glob that the shell expanded, so that teachers turned into checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from wfcli.core.zoo import FILE
from wfcli.errors import CheckpointError


def refuse_expanded_glob(checkpoints: Sequence[str], teachers: Sequence[str]) -> None:
    """Refuse ``eval student --teachers zoo/*.safetensors`` without quotes: all but one became checkpoints.

    One teacher alone is an error in any case; this one says what happened. The signs: beside the only teacher lie
    checkpoints whose names differ from its own by numbers, or several, or one that is in the same zoo.

    Raises:
        CheckpointError: it looks like that.
    """
    if len(teachers) != 1 or not Path(teachers[0]).is_file():
        return
    teacher = Path(teachers[0])
    folder = teacher.resolve().parent
    files = [path for path in map(Path, checkpoints) if path.is_file()]
    beside = [path for path in files if path.resolve().parent == folder and path.name != teacher.name]
    relatives = [path for path in beside if _without_numbers(path) == _without_numbers(teacher)]
    relatives += [path for path in beside if {path.name, teacher.name} <= _names_in_zoo(folder)]
    if not relatives and len(beside) < 2:
        return
    first = (relatives or beside)[0]
    names = first.name + (f" and {len(beside) - 1} more" if len(beside) > 1 else "")
    raise CheckpointError(
        f"expected at least 2 teachers, got only {teacher.name}; {names} beside it came as checkpoints: "
        "it looks as if the shell had expanded the glob after --teachers",
        hint=f"quote the glob, --teachers '{teacher.parent}/*{teacher.suffix}', or repeat --teachers before every file",
    )


def _without_numbers(path: Path) -> str:
    return "".join(letter for letter in path.name if not letter.isdigit())


def _names_in_zoo(folder: Path) -> set[str]:
    """Return the teachers that a zoo.json there names; nothing where there is none that can be read."""
    try:
        return {entry["file"] for entry in json.loads((folder / FILE).read_text(encoding="utf-8"))["teachers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
